"""Compares a stub file (.pyi) with the C++ module that it describes.

pybind11 writes each function's signature into its docstring, from which names, order
and defaults of parameters are read. Types are not compared.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parent.parent / "codedgrad"


class Parameter(NamedTuple):
    name: str
    keyword_only: bool
    has_default: bool


Signature = tuple[Parameter, ...]
Members = dict[str, Any]  # by name: a Signature, the Members of a class, or None


def differences(module: Any, stub: Path) -> list[str]:
    """Returns one line for every name whose stub is not what the module has."""
    return compare("", of_module(module), of_stub(ast.parse(stub.read_text()).body))


def compare(prefix: str, built: Members, stub: Members) -> list[str]:
    found = [f"{prefix}{n}: not in the stub" for n in sorted(built.keys() - stub)]
    found += [f"{prefix}{n}: only in the stub" for n in sorted(stub.keys() - built)]
    for name in sorted(built.keys() & stub.keys()):
        ours, theirs = built[name], stub[name]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += compare(f"{prefix}{name}.", ours, theirs)
        elif ours != theirs:
            found.append(f"{prefix}{name}: built {ours}, in the stub {theirs}")
    return found


# ---- what the module has ----


def of_module(module: Any) -> Members:
    return {
        name: of_class(value) if inspect.isclass(value) else built_signature(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and value is not module
    }


def of_class(cls: type) -> Members | None:
    if cls.__module__ == "codedgrad.errors":  # an alias
        return None
    return {
        name: built_signature(value.__func__ if is_static(value) else value)
        for name, value in vars(cls).items()
        if name == "__init__" or not name.startswith("_")
        if is_documented(name, value)
    }


def is_static(value: Any) -> bool:
    return isinstance(value, staticmethod)


def is_documented(name: str, value: Any) -> bool:
    """Returns False for the __init__ of a class that Python cannot construct."""
    text = (value.__doc__ or "").lstrip()
    return name != "__init__" or text.startswith("__init__(")


def built_signature(value: Any) -> Signature | None:
    """None for properties and constants."""
    if not callable(value) and not hasattr(value, "__wrapped__"):
        return None
    text = (value.__doc__ or "").strip().splitlines()
    if not text or "(" not in text[0]:
        return None
    (function,) = ast.parse(f"def {text[0]}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return signature(function)


# ---- what the stub has ----


def of_stub(body: list[ast.stmt]) -> Members:
    members: Members = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if node.name == "__init__" or not node.name.startswith("_"):
                members[node.name] = signature(node)
        elif isinstance(node, ast.ClassDef):
            members[node.name] = of_stub(node.body)
        elif isinstance(node, ast.AnnAssign):
            members[ast.unparse(node.target)] = None
        elif isinstance(node, ast.Assign):
            members[ast.unparse(node.targets[0])] = None
    return members


def signature(function: ast.FunctionDef) -> Signature:
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    first = len(plain) - len(given.defaults)
    found = [Parameter(a.arg, False, i >= first) for i, a in enumerate(plain)]
    found += [
        Parameter(a.arg, True, default is not None)
        for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return tuple(p for p in found if p.name != "self")
