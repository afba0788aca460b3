"""Which function is this? Its code, and a digest that is the same on all workers."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

from torch import nn

_DEPTH = 3  # functions that a function holds, and what these hold
_MEMORY = " at 0x"
_TITLE = "\0"  # begins a text that is only shown
_SHORT = 60  # characters of a text that is shown


def code_of(function: Any) -> Any:
    """Returns what stays the same when a function is made again at the same place."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, types.FunctionType):
            inner = getattr(function, "__wrapped__", None)  # by a decorator
            if inner is None:
                return function.__code__
            function = inner
        elif isinstance(function, nn.Module):  # which takes long to say what it lacks
            return function if "__qualname__" in vars(function) else type(function)
        elif isinstance(function, type) or hasattr(function, "__qualname__"):
            return function  # a class, or a function of C
        else:
            return type(function)


def codes_of(function: Any) -> tuple[Any, ...]:
    """Returns `code_of` a function, and of the functions that it was made with.

    Two losses of one factory, or of one `functools.partial`, differ in these only.
    """
    found = [code_of(function)]
    while isinstance(function, (functools.partial, types.MethodType)):
        if isinstance(function, functools.partial):
            held = (*function.args, *function.keywords.values())
            found += [code_of(one) for one in held if callable(one)]
            function = function.func
        else:
            function = function.__func__
    cells = map(_contents, getattr(function, "__closure__", None) or ())
    found += [code_of(one) for one in cells if callable(one)]
    return tuple(found)


def code_digest(function: Any, *, bytecode: bool = True) -> int:
    """Returns 64 bits that tell the code of a function from that of another.

    Values do not count, but for constants of the code: closures and defaults may
    rightly hold something of each worker's own, such as its rank or its device. The
    functions, and modules, that a closure, a default or a partial holds do count, by
    their code, type and settings.

    Args:
        function: any callable.
        bytecode: whether instructions count, which depend on the version of Python.
    """
    digest = hashlib.blake2b(digest_size=8)
    for _, piece in _pieces(function, bytecode, _DEPTH, ""):
        if not piece.startswith(_TITLE):
            digest.update(piece.encode() + b"\n")
    return int.from_bytes(digest.digest(), "big")


def code_parts(function: Any, *, bytecode: bool = True) -> list[tuple[str, str]]:
    """Returns what counts for `code_digest`, by function, each with a short text.

    Args:
        function: any callable.
        bytecode: as there.

    Returns:
        Pairs of a path, such as "" for the function itself and " > criterion" for the
        one that its variable `criterion` holds, and of a name with a digest.
    """
    texts: dict[str, list[str]] = {}
    for path, piece in _pieces(function, bytecode, _DEPTH, ""):
        texts.setdefault(path, []).append(piece)
    found = []
    for path, pieces in texts.items():
        counted = [p for p in pieces if not p.startswith(_TITLE)]
        digest = hashlib.blake2b("\n".join(counted).encode(), digest_size=8)
        short = next((p for p in pieces if len(p) <= _SHORT), "").lstrip(_TITLE)
        found.append((path, f"{short} [{digest.hexdigest()}]".lstrip()))
    return found


def _pieces(thing: Any, bytecode: bool, depth: int, path: str) -> Any:
    """Yields paths and texts that describe a function, or what a function holds."""
    if depth < 0:
        return
    held: Any
    if isinstance(thing, functools.partial):
        yield path, "partial " + " ".join(sorted(thing.keywords))
        held = [("its function", thing.func)]
        held += [(f"argument {i}", one) for i, one in enumerate(thing.args)]
        held += thing.keywords.items()
    elif isinstance(thing, types.MethodType):
        held = [("its function", thing.__func__)]
    elif isinstance(thing, types.FunctionType):
        yield path, _TITLE + thing.__name__
        for text in _of_code(thing.__code__, bytecode):
            yield path, text
        held = _held_by(thing, bytecode)
    elif isinstance(thing, nn.Module):
        for name, module in thing.named_modules():
            yield path, f"{name} {type(module).__qualname__} {_settings(module)}"
        return
    elif isinstance(thing, type) or hasattr(thing, "__qualname__"):
        yield path, f"{getattr(thing, '__module__', '')} {thing.__qualname__}"
        return
    elif callable(thing):
        yield path, type(thing).__qualname__
        attributes = getattr(thing, "__dict__", {})
        held = [("__call__", type(thing).__call__)]
        held += [(key, one) for key, one in attributes.items() if callable(one)]
    else:
        return  # a value
    for name, one in held:
        yield from _pieces(one, bytecode, depth - 1, f"{path} > {name}")


def _held_by(function: types.FunctionType, bytecode: bool) -> list[tuple[str, Any]]:
    """Returns what a function holds, by name: defaults, variables, other functions."""
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][-len(defaults) :] if defaults else ()
    held = list(zip(names, defaults, strict=True))
    held += (function.__kwdefaults__ or {}).items()
    cells = map(_contents, function.__closure__ or ())
    held += zip(code.co_freevars, cells, strict=True)
    used = code.co_names if bytecode else ()
    found = [(name, function.__globals__.get(name)) for name in used]
    return held + [(n, one) for n, one in found if isinstance(one, types.FunctionType)]


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _settings(module: nn.Module) -> str:
    """Returns what a module shows of itself, and all settings of one of torch's own."""
    try:
        text = module.extra_repr()
    except Exception:  # noqa: BLE001 (of the user's own; the type says enough)
        text = ""
    if _MEMORY in text or "cuda:" in text:
        text = ""
    if not type(module).__module__.startswith("torch."):
        return text
    shown = (bool, int, float, str, types.NoneType)
    own = {k: v for k, v in vars(module).items() if isinstance(v, shown)}
    own.pop("training", None)  # torch.compile's modules have none of their own
    return f"{text} {sorted((k, repr(v)) for k, v in own.items() if k[0] != '_')}"


def _of_code(code: types.CodeType, bytecode: bool) -> Any:
    if not bytecode:  # names and constants depend on the version of Python, too
        yield f"{code.co_name} {code.co_varnames[: code.co_argcount]}"
        return
    yield f"{code.co_names} {code.co_varnames} {code.co_freevars}"
    yield code.co_code.hex()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant, bytecode)
        elif isinstance(constant, frozenset):
            yield str(sorted(map(repr, constant)))
        else:
            yield repr(constant)
