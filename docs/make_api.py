"""Write docs/api.md from the docstrings of codedgrad's public names.

    python docs/make_api.py

The page is the same on every Python from 3.10 on: the script reads annotations as they
stand in the source and prints no default value whose text could hold an address.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, is_typeddict

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/make_api.py"
MODULES = (
    "codedgrad",
    "codedgrad.settings",
    "codedgrad.hvd",
    "codedgrad.codes",
    "codedgrad.inference.learned",
    "codedgrad.integrations.ddp",
    "codedgrad.monitor",
    "codedgrad.ops",
)
# What other names' keywords are described by; nobody imports them.
KEYWORDS = (
    ("codedgrad.data.loader", "LoaderSettings"),
    ("codedgrad.hvd.optimizer", "DropInKeywords"),
)
WIDTH = 88
HEAD = f"""\
# API

All public names, from their docstrings. This page is generated: change the docstring,
then run `{COMMAND}`. [glossary.md](glossary.md) explains the words.
"""
LISTS = ("Args", "Attributes", "Raises")
SECTIONS = (*LISTS, "Returns", "Yields", "Example", "Examples")


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module: its `__all__`, else the classes that it defines.

    Names that the package itself exports stand there only.
    """
    if module.__name__ == MODULES[0]:
        return sorted(module.__all__, key=str.lower)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    package = vars(importlib.import_module(MODULES[0]))
    own = [name for name in names if package.get(name) is not getattr(module, name)]
    return sorted(own, key=str.lower)


def doc_of(thing: Any) -> str:
    """The docstring that stands in the source, or nothing."""
    text = getattr(thing, "__doc__", None) or ""
    if isinstance(thing, type) and text.startswith(f"{thing.__name__}("):
        return ""  # dataclasses and named tuples write one themselves
    return inspect.cleandoc(text)


def escaped(line: str) -> str:
    """A line of prose in which no `<` outside of code is taken for HTML."""
    parts = line.split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


def markdown(doc: str) -> Iterator[str]:
    """A docstring in Google's style, as lines of Markdown."""
    section = ""
    for line in doc.splitlines():
        head = line.removesuffix(":")
        if line.endswith(":") and head in SECTIONS:
            section = head
            yield f"**{head}**"
            yield ""
            if section.startswith("Example"):
                yield "```python"
            continue
        if line and not line.startswith(" "):
            section = ""
        if section.startswith("Example"):
            yield re.sub(r"\s*# doctest:.*", "", line.removeprefix("    "))
        elif section in LISTS:
            yield item(line.removeprefix("    "))
        elif section:
            yield escaped(line.removeprefix("    "))
        else:
            yield line if line.startswith("    ") else escaped(line)
    if section.startswith("Example"):
        yield "```"


def item(line: str) -> str:
    """One line of a list such as that of the arguments."""
    found = re.match(r"(\*{0,2}[A-Za-z_][\w., ]*): (.*)", line)
    if found:
        return f"- `{found[1]}`: {escaped(found[2])}"
    return "  " + escaped(line.strip()) if line else line


def annotation(value: Any) -> str:
    """A type, as it stands in the source."""
    if isinstance(value, str):
        return value
    forward = getattr(value, "__forward_arg__", None)
    return str(forward or getattr(value, "__name__", value))


def default(value: Any) -> str:
    """A default value; `...` where its text is not the same in every process."""
    if dataclasses.is_dataclass(value) and value == type(value)():
        return f"{type(value).__name__}()"
    text = repr(value)
    return "..." if text.startswith("<") or " at 0x" in text else text


def signature(name: str, thing: Any, *, method: bool = False) -> str:
    """`name(arguments) -> type`, on several lines where one is too long."""
    described = inspect.signature(thing)
    words: list[str] = []
    star = False
    for p in list(described.parameters.values())[int(method) :]:
        if p.name.startswith("_"):
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            words.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        word = prefix + p.name
        typed = p.annotation is not p.empty
        if typed:
            word += f": {annotation(p.annotation)}"
        if p.default is not p.empty:
            word += f" = {default(p.default)}" if typed else f"={default(p.default)}"
        words.append(word)
    end = ""
    if (
        not isinstance(thing, type)
        and described.return_annotation is not inspect._empty
    ):
        end = f" -> {annotation(described.return_annotation)}"
    line = f"{name}({', '.join(words)}){end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){end}"])


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, those of our own bases included."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("codedgrad"):
            continue
        for name, value in vars(base).items():
            kinds = (FunctionType, property, cached_property, classmethod, staticmethod)
            if name.startswith("_") or name in seen or not isinstance(value, kinds):
                continue
            seen.add(name)
            yield name, value


def code(text: str) -> Iterator[str]:
    """A block of Python."""
    yield from ("```python", text, "```", "")


def class_lines(name: str, cls: type) -> Iterator[str]:
    """One class."""
    if is_typeddict(cls):
        keys = ", ".join(f"`{key}`" for key in cls.__annotations__)
        yield from (f"A dictionary with some of the keys {keys}.", "")
    elif not issubclass(cls, BaseException):
        yield from code(signature(name, cls))
    yield from markdown(doc_of(cls))
    yield ""
    # Where a class says nothing of its arguments, __init__ does.
    init = vars(cls).get("__init__")
    if isinstance(init, FunctionType) and doc_of(init):
        yield from markdown(doc_of(init))
        yield ""
    for member, value in members(cls):
        yield f"#### `{name}.{member}`"
        yield ""
        if isinstance(value, (classmethod, staticmethod)):
            method = isinstance(value, classmethod)
            value = value.__func__
            yield from code(signature(member, value, method=method))
        elif isinstance(value, FunctionType):
            yield from code(signature(member, value, method=True))
        elif isinstance(value, cached_property):
            value = value.func
        yield from markdown(doc_of(value))
        yield ""


def lines_of(name: str, thing: Any) -> Iterator[str]:
    """One public name."""
    if isinstance(thing, ModuleType):
        yield f"### `{name}`"
        yield ""
        yield f"A module, see [below](#{thing.__name__.replace('.', '')})."
        yield ""
        return
    yield f"### `{name}`"
    yield ""
    if isinstance(thing, type):
        yield from class_lines(name, thing)
    elif isinstance(thing, dict):
        keys = ", ".join(f"`{key}`" for key in thing)
        yield from (f"A dictionary with the keys {keys}.", "")
    elif callable(thing):
        yield from code(signature(name, thing))
        yield from markdown(doc_of(thing))
        yield ""
    else:
        yield from (f"`{thing!r}`", "")


def page() -> str:
    """The whole page."""
    out = [HEAD]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        out += [f"## {module_name}", "", *markdown(doc_of(module)), ""]
        for name in names_of(module):
            out += lines_of(name, getattr(module, name))
    out += ["## Further keywords", ""]
    for module_name, name in KEYWORDS:
        out += lines_of(name, getattr(importlib.import_module(module_name), name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).rstrip() + "\n"


def undocumented() -> list[str]:
    """Public functions, classes and members without a docstring."""
    bare = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in names_of(module):
            thing = getattr(module, name)
            if isinstance(thing, (type, FunctionType)) and not doc_of(thing):
                bare.append(f"{module_name}.{name}")
            if isinstance(thing, type):
                bare += [
                    f"{module_name}.{name}.{member}"
                    for member, value in members(thing)
                    if not doc_of(getattr(value, "func", value))
                ]
    return bare


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
