"""Errors. Each message says what was got, what was wanted and the remedy."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class CodedGradError(RuntimeError):
    """Base of all errors raised by codedgrad."""


class ConfigError(CodedGradError, ValueError):
    """An argument is wrong."""


class EnvironmentSetupError(CodedGradError):
    """MPI, the launcher or the build does not fit."""


class MismatchError(CodedGradError):
    """The workers disagree about what they do.

    Attributes:
        everywhere: all workers raise this error, so none has to tell the others.
    """

    everywhere = False


class WorkerError(CodedGradError):
    """Another worker failed, or left; the message is the same on every worker."""


class DataError(CodedGradError):
    """A sample of a dataset could not be read; the message has its index."""


class OverloadError(CodedGradError):
    """A predictor has as many queries under way as it takes; ask again later."""


class NonFiniteError(CodedGradError):
    """A loss or gradient is NaN or infinite."""


def missing_extra(extra: str, error: ImportError) -> EnvironmentSetupError:
    """Return the error that names the extra of this package that brings a library.

    Args:
        extra: its name in pyproject.toml.
        error: of the import.
    """
    return EnvironmentSetupError(
        f"{error.name or error} cannot be loaded ({error}): "
        f"pip install 'codedgrad[{extra}]'"
    )


def unknown_keywords(
    called: Callable[..., Any], unknown: Iterable[str], more: Iterable[str]
) -> TypeError:
    """Return the error that names keywords which there are not, and all that there are.

    Args:
        called: what was called with them, a function or a class.
        unknown: the keywords.
        more: those that there are beside the arguments that it names itself.
    """
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(called).parameters.values()
    known = [*(p.name for p in parameters if p.kind in named), *more]
    wrong = sorted(unknown)
    near = [n for w in wrong for n in difflib.get_close_matches(w, known, 1)]
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    return TypeError(
        f"{called.__name__}() got unexpected keyword argument(s) {wrong}{hint}; there "
        f"are {', '.join(known)}"
    )
