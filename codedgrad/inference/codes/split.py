"""The exact split code: one linear map behind a body, f(x) = W h(x) + b.

The redundant worker runs the body for all k queries, adds the features with signs s_i
that alternate, and applies the map once: P = W sum_i s_i h(x_i). The missing answer is

    f(x_j) = b + s_j (P - sum_{i != j} s_i (f(x_i) - b)),

exact up to rounding whatever the body is; features are often positive, and signs keep
their sum, and so its rounding, small. It is Lee et al.'s coded matrix product
(Speeding up distributed machine learning using codes, 2018) behind a nonlinear body,
and pays where the map is most of the work: 1/k of it, and the body, are extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codedgrad.errors import ConfigError
from codedgrad.inference.codes.interface import EXACT, Systematic

_SHORT = 64  # features that are multiplied and added up by themselves


class SplitLinear(Systematic):
    """One redundant worker for k queries of a model that ends in a linear layer."""

    name = "split linear"
    fills = EXACT

    def __init__(self, body: nn.Module, last: nn.Linear, k: int) -> None:
        """Takes the parts of the model.

        Args:
            body: all before the linear layer.
            last: the linear layer.
            k: queries of a group.
        """
        if not isinstance(last, nn.Linear):
            raise ConfigError(
                f"the split code needs a model that ends in a linear layer, got "
                f"{type(last).__qualname__}"
            )
        super().__init__(nn.Sequential(body, last), k)
        self._body, self._last = body, last

    def redundant(self, queries: Tensor) -> Tensor:
        """Return all queries."""
        return queries

    def back_up(self, sent: Tensor) -> Tensor:
        """Return W sum_i s_i h(x_i)."""
        features = self._body(sent.flatten(0, 1)).unflatten(0, sent.shape[:2])
        mixed, weight = _signed(features), self._last.weight
        # Short sums round less, and all of this rounding ends in one answer.
        parts = zip(mixed.split(_SHORT, 1), weight.split(_SHORT, 1), strict=True)
        first, *others = (F.linear(part, by) for part, by in parts)
        return sum(others, start=first)

    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the difference, added up in float64."""
        bias: Tensor | float = 0.0
        if self._last.bias is not None:
            bias = self._last.bias.double()
        found = parity.double()
        for query, answer in own.items():
            found = found - (-1) ** query * (answer.double() - bias)
        found = bias + (-1) ** missing[0] * found
        return {missing[0]: found.to(parity.dtype)}


def split_of(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Returns body and last layer of a Sequential that ends in a linear layer.

    Raises:
        ConfigError: it does not.
    """
    parts = list(model) if isinstance(model, nn.Sequential) else []
    while parts and isinstance(parts[-1], nn.Sequential):
        parts = [*parts[:-1], *parts[-1]]
    if not parts or not isinstance(parts[-1], nn.Linear):
        raise ConfigError(
            "the split code needs a Sequential that ends in a linear layer; give body "
            "and last layer to SplitLinear"
        )
    return nn.Sequential(*parts[:-1]), parts[-1]


def _signed(features: Tensor) -> Tensor:
    """Returns the sum over queries, [groups, k, ...], with signs that alternate."""
    return features[:, ::2].sum(1) - features[:, 1::2].sum(1)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Returns the norm of the difference over the norm of the exact answers."""
    gap = torch.linalg.vector_norm(found.double() - exact.double())
    return float(gap / torch.linalg.vector_norm(exact.double()))
