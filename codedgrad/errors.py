"""Errors. Each message says what was got, what was wanted and the remedy."""

from __future__ import annotations


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
