"""The names of an optimizer's parameters, checked against its parameter groups."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import Tensor

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


def named(
    optimizer: torch.optim.Optimizer, given: Iterable[tuple[str, Tensor]] | None
) -> list[tuple[str, Tensor]]:
    """Return (name, parameter) pairs.

    Args:
        optimizer: whose parameters must all be named, if they require a gradient.
        given: what the user has named; None names the parameters by their places.

    Raises:
        ConfigError: `given` holds something else than pairs, a name twice, or not all
            parameters of the optimizer.
    """
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise ConfigError(
            f"got {type(optimizer).__qualname__}, wanted an optimizer of torch"
        )
    groups = [
        (f"group {g}, parameter {i}", p)
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
    ]
    if given is None:
        return groups
    pairs = list(given)
    for pair in pairs:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)
        ):
            raise ConfigError(
                f"named_parameters must be (name, parameter) pairs, such as "
                f"model.named_parameters(), got {type(pair).__qualname__}"
            )
    twice = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    if twice:
        raise ConfigError(f"named_parameters has the same name twice: {twice[:4]}")
    known = {id(p) for _, p in pairs}
    lost = [name for name, p in groups if p.requires_grad and id(p) not in known]
    if lost:
        raise ConfigError(
            f"named_parameters lacks {len(lost)} parameter(s) of the optimizer, whose "
            f"gradients nobody would exchange: {', '.join(lost[:4])}; give the "
            f"named_parameters() of every module, or leave named_parameters out"
        )
    return pairs
