"""Random numbers that are the same for a batch and for each piece of it.

A loss function that draws random numbers, for dropout say, gives another loss for every
draw, so a batch cannot be compared with its pieces. Here each random operation of torch
gives numbers that do not depend on how many samples there are. They are the middle of
what may be drawn: 1/2 of the numbers between 0 and 1, 0 of normal ones, and for a
chance the chance itself, so that dropout does nothing. Where a loss function can do
nothing with those (none of the tokens is masked, say), they are drawn once for all
samples. Permutations, also those by sorting random numbers, move every sample.

The numbers of numpy and of Python's `random` are not replaced, and neither are those of
a few operations (`rrelu`, a sample without replacement).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SEEDED = torch.Tag.nondeterministic_seeded
_WORDS = "dtype", "layout", "device"  # of operations that make a tensor
_OFF = "dropout_p", "dropout"  # arguments of operations that drop by themselves


class Steady(TorchDispatchMode):
    """Replaces what torch's operations draw, but for those that are not known."""

    def __init__(self, *, drawn: bool) -> None:
        """With `drawn` numbers are drawn once for all samples, else the middle ones."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._drawn = drawn
        self._generator = torch.Generator().manual_seed(1)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns that torch's compiler, which takes a second, need not be imported."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return what the operation returns, with other random numbers."""
        kwargs = kwargs or {}
        seeded, off, sorts = _of(func)
        for place in off:
            if place < len(args):
                args = (*args[:place], 0.0, *args[place + 1 :])
        kwargs = {k: 0.0 if k in _OFF else v for k, v in kwargs.items()}
        if sorts:
            return _sorted(*func(*args, **kwargs), *args[1:2], **kwargs)
        if not seeded:
            return func(*args, **kwargs)
        schema = func._schema.arguments
        given = {a.name: a.default_value for a in schema}
        given.update(zip((a.name for a in schema), args, strict=False))
        given.update(kwargs)
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            return func(args[0], 0.0, True)
        if name == "randperm":
            return _order(given["n"], {"dtype": torch.int64, **_words(given)})
        values = self._values(name, given)
        if values is None:
            return func(*args, **kwargs)
        if name.endswith("_"):
            return given["self"].copy_(values)
        return values

    def _values(self, name: str, given: dict[str, Any]) -> Tensor | None:
        """Returns the values of an operation; None: it is not known."""
        stem = name.removesuffix("_").removesuffix("_like")
        if stem == "multinomial":
            return self._chosen(given)
        like = _like(name, given)
        if like is None:
            return None
        if stem == "bernoulli":
            p = given.get("p")
            p = given["self"] if p is None else p
            p = torch.as_tensor(p, device=like.device)
            values = (self._uniform(like) < p).to(p.dtype) if self._drawn else p
        elif stem in ("rand", "uniform"):
            low, high = given.get("from", 0.0), given.get("to", 1.0)
            values = low + (high - low) * self._uniform(like)
        elif stem in ("randn", "normal"):
            normal = torch.special.ndtri(self._uniform(like))
            values = given.get("mean", 0.0) + given.get("std", 1.0) * normal
        elif stem == "exponential":
            values = -self._uniform(like).log() / given["lambd"]
        elif stem in ("randint", "random"):
            low = given.get("low", given.get("from")) or 0
            high = given.get("high", given.get("to"))
            if high is None:
                return None
            values = (low + (high - low) * self._uniform(like)).floor()
        else:
            return None
        return like.copy_(values.expand(like.shape)) if name[-1] != "_" else values

    def _uniform(self, like: Tensor) -> Tensor:
        """Returns numbers between 0 and 1 that do not depend on the first size."""
        if not self._drawn:
            return torch.full(like.shape, 0.5, device=like.device)
        row = (1, *like.shape[1:]) if like.dim() else ()
        u = torch.rand(row, generator=self._generator).clamp(1e-6, 1 - 1e-6)
        return u.to(like.device).expand(like.shape)

    def _chosen(self, given: dict[str, Any]) -> Tensor | None:
        many = given["num_samples"]
        if many > 1 and not given["replacement"]:
            return None
        sums = given["self"].double().cumsum(-1)
        like = sums[..., :1].expand(*sums.shape[:-1], many)
        u = self._uniform(like).double() * sums[..., -1:]
        return torch.searchsorted(sums, u.contiguous()).clamp(max=sums.shape[-1] - 1)


@lru_cache(1024)
def _of(func: Any) -> tuple[bool, tuple[int, ...], bool]:
    """Returns whether an operation draws, what is to be 0 there, and whether it sorts.

    What is to be 0 are places of arguments.
    """
    names = [a.name for a in func._schema.arguments]
    off = tuple(i for i, name in enumerate(names) if name in _OFF)
    return _SEEDED in func.tags, off, func is torch.ops.aten.sort.default


def _order(n: int, words: dict[str, Any]) -> Tensor:
    """Returns a permutation in which every sample, of several, gets another's place.

    A loss function that mixes samples with random partners so differs from the mean of
    its pieces, as it does with almost any permutation.
    """
    return torch.arange(n, **words).roll(1)


def _sorted(
    values: Tensor, places: Tensor, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns what `sort` returns, with another order of values that are all the same.

    Those are random numbers, which somebody sorts to get a permutation of samples.
    """
    del descending
    if values.numel() and bool((values == values.select(dim, 0).unsqueeze(dim)).all()):
        return values, places.roll(1, dim)
    return values, places


def _like(name: str, given: dict[str, Any]) -> Tensor | None:
    """Returns the tensor to be filled, or one like it; None: there is no such thing."""
    if name.endswith("_"):
        return given["self"]  # type: ignore[no-any-return]
    words = _words(given)
    if "size" in given:
        if name == "randint":
            words.setdefault("dtype", torch.int64)
        return torch.empty(given["size"], **words)
    for key in ("self", "mean", "std"):
        if isinstance(given.get(key), Tensor):
            return torch.empty_like(given[key], **words)
    return None


def _words(given: dict[str, Any]) -> dict[str, Any]:
    """Returns of what type, and where, a tensor is to be made, as far as it is said."""
    found = {key: given.get(key) for key in _WORDS}  # a default type is a number
    return {k: v for k, v in found.items() if v is not None and type(v) is not int}
