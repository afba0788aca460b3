"""The way out of a row: a decoded sum becomes gradients, buffers and a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.ops import objects

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from codedgrad.row.buffers import Buffers
    from codedgrad.row.layout import Layout


def scatter(
    layout: Layout, buffers: Buffers, total: Tensor, tail: NDArray[Any]
) -> Tensor:
    """Adds the decoded gradients to `p.grad` and sets the model's buffers.

    Where `p.grad` is None, it becomes a view of `total`, without a copy; in a model of
    16-bit parameters, a view of one copy in that type. A parameter that no pass of the
    step used is left alone.

    Args:
        layout: where everything lies.
        buffers: the model's, with their values from before the step.
        total: the decoded sum [count], where the model is.
        tail: the part of `total` after the gradients, on the CPU, so that flags and
            loss can be read without waiting for a device.

    Returns:
        The mean loss of the batch, a scalar on the CPU.
    """
    shares, parameters = tail[layout.used_area], layout.parameters
    own = layout.own_type
    usual = own is not None and bool(shares.all())
    same = own is None or own == total.dtype
    views = layout.views(total if same else total[: layout.gradients].to(own))
    if usual and objects.all_none(parameters, "grad"):
        objects.assign(parameters, "grad", views)
    else:
        with torch.no_grad():
            for p, share, view in zip(parameters, shares.tolist(), views, strict=True):
                if share != 0.0:
                    _add(p, view)
    buffers.apply(total)
    return torch.tensor(tail[layout.loss_place], dtype=total.dtype)


def _add(parameter: Tensor, view: Tensor) -> None:
    gradient = view if view.dtype == parameter.dtype else view.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)
