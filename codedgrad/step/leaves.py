"""The leaves of a loss: every tensor to which its backward will give a gradient."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from codedgrad.errors import ConfigError
from codedgrad.step import live

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from torch import Tensor


class Leaves:
    """Looks whether all leaves of a loss are in the payload."""

    def __init__(self, inside: Container[int]) -> None:
        """`inside` are the ids of the tensors whose gradients travel."""
        self._inside = inside
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def check(self, loss: Tensor) -> None:
        """Looks at the graph of one pass's loss.

        A leaf that is no parameter may be an input of this pass alone, whose gradient
        the loss function wants (a gradient penalty). It is refused if it comes again.

        Raises:
            ConfigError: a gradient would be lost; the message names the tensor.
        """
        for leaf in leaves_of(loss):
            if id(leaf) in self._inside:
                continue
            seen = self._seen.get(id(leaf))
            again = seen is not None and seen() is leaf
            if isinstance(leaf, nn.Parameter) or again:
                raise ConfigError(
                    f"the loss gives a gradient to {live.name_of(leaf)}, which is not "
                    f"in the payload, so that gradient would be lost; {live.REMEDY}"
                )
            self._seen[id(leaf)] = weakref.ref(leaf)


def leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """Yields the leaves to which the backward of `loss` gives gradients."""
    seen: set[Any] = set()
    ahead: list[Any] = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not node.next_functions:
            yield leaf
        ahead += [following for following, _ in node.next_functions]
