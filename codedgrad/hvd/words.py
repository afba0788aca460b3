"""The words of Horovod's interface: operations, compressions, and what is refused."""

from __future__ import annotations

import enum
from typing import Any, NoReturn

from codedgrad.errors import ConfigError


class ReduceOp(enum.Enum):
    """What becomes of the values of all workers."""

    Average = "mean"
    Sum = "sum"
    Min = "min"
    Max = "max"
    Adasum = "Adasum"
    Product = "Product"


Average, Sum, Min, Max = ReduceOp.Average, ReduceOp.Sum, ReduceOp.Min, ReduceOp.Max
Adasum, Product = ReduceOp.Adasum, ReduceOp.Product


class Compressor(enum.Enum):
    """The type in which gradients travel; see `codedgrad.ExchangeSettings`."""

    none = "float32"
    fp16 = "float16"
    bf16 = "bfloat16"


class Compression:
    """Horovod's names for the types in which gradients travel.

    Attributes:
        none: gradients travel in their own type, `wire=None`.
        fp16: half the bytes, `wire="float16"`.
        bf16: half the bytes, `wire="bfloat16"`.
    """

    none = Compressor.none
    fp16 = Compressor.fp16
    bf16 = Compressor.bf16


def wire_of(compression: object) -> str:
    """Return the wire type of a compression.

    Raises:
        ConfigError: it is none of `Compression`'s.
    """
    if isinstance(compression, Compressor):
        return compression.value
    raise ConfigError(
        f"compression must be Compression.none, .fp16 or .bf16, got {compression!r}; "
        f"a Compressor of your own has no counterpart"
    )


def check_op(op: object, allowed: tuple[ReduceOp, ...]) -> ReduceOp:
    """Return an operation that is among `allowed`.

    Raises:
        ConfigError: it is not; with the remedy.
    """
    if isinstance(op, ReduceOp) and op in allowed:
        return op
    names = ", ".join(one.name for one in allowed)
    found = op.name if isinstance(op, ReduceOp) else repr(op)
    why = " (codedgrad computes exact sums, and has no Adasum)" if op is Adasum else ""
    raise ConfigError(f"op must be one of {names}, got {found}{why}")


class ProcessSet:
    """A set of processes in Horovod; here there is `global_process_set` only."""

    def __init__(self, *_: Any) -> None:
        """Refuse a set of some of the workers.

        Raises:
            ConfigError: with the remedy.
        """
        refuse("a process set", "Groups of workers are made with local_group=")

    def __repr__(self) -> str:
        return "global_process_set"


global_process_set: ProcessSet = object.__new__(ProcessSet)


def check_process_set(process_set: object) -> None:
    """Refuse any process set but the global one.

    Raises:
        ConfigError: with the remedy.
    """
    if process_set is not None and process_set is not global_process_set:
        refuse("a process set", "All workers take part in everything")


def refuse(what: str, remedy: str) -> NoReturn:
    """Refuse something that Horovod has.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"codedgrad.hvd has no counterpart of {what}. {remedy}.")


class Refused:
    """A name of Horovod's without a counterpart; using it is an error that says so."""

    def __init__(self, what: str, remedy: str) -> None:
        """Take what is refused, and what to do instead."""
        self._words = what, remedy

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):  # whoever inspects it asks for these
            raise AttributeError(name)
        what, remedy = self._words
        refuse(f"{what}.{name}", remedy)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse the call.

        Raises:
            ConfigError: always, with the remedy.
        """
        refuse(*self._words)
