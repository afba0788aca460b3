"""The closure of `optimizer.step(closure)` returns the mean loss of all workers.

An optimizer that calls a closure decides by its value how often it calls it again
(L-BFGS), so the value must be the same on all workers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.step import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from codedgrad.job.runtime import Runtime

_FORMAT = "d?"  # the loss, and whether there is one


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the closure among the arguments of `Optimizer.step`, or None."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return closure if callable(closure) else None


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of `Optimizer.step` with another closure."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


def averaged(job: Runtime, closure: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a closure that calls `closure` and returns the mean of what it returns.

    The workers compute equally large shares of the batch. What is no number is returned
    as it is.
    """

    def mean_loss() -> Any:
        loss = closure()
        tensor = isinstance(loss, torch.Tensor) and loss.numel() == 1
        known = tensor or type(loss) in (int, float)
        with start.failing_together(job, "failed in a closure"):
            value = float(loss.detach() if tensor else loss) if known else 0.0
            mine = struct.pack(_FORMAT, value, known)
            blobs = job.gather(mine, "for the mean of a closure's loss")
        losses = [struct.unpack(_FORMAT, blob) for blob in blobs]
        if not all(everywhere for _, everywhere in losses):
            return loss
        mean = sum(theirs for theirs, _ in losses) / len(losses)
        return torch.full_like(loss, mean) if tensor else mean

    return mean_loss
