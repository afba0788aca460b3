"""The collectives that a framework offers, and why none of them works inside a pass."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.job import collectives, runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPERATIONS = {"avg": "mean", "none": "sum"}  # what frameworks call them


class Collectives:
    """Averages and objects of all workers, between the steps. Each is a barrier.

    A pass is made for a part of a batch, by whoever is idle. So a collective inside of
    one would wait for workers that never come to it, and is refused.
    """

    def __init__(self, function: str) -> None:
        """Begin outside of a pass; `function` is what the passes call, for messages."""
        self._function = function
        self._in_pass = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Inside, a pass is made."""
        self._in_pass = True
        try:
            yield
        finally:
            self._in_pass = False

    def check(self, what: str, group: Any = None) -> None:
        """Refuse a collective inside a pass, or among some of the workers.

        Raises:
            ConfigError: it cannot be done; the message says what to do instead.
        """
        if self._in_pass:
            raise ConfigError(
                f"{self._function} called {what}: it is run for parts of a batch, and "
                f"not equally often on all workers, so nobody would answer. Compute "
                f"the loss from the batch alone; what is logged is the mean of the "
                f"whole step anyway"
            )
        if group is not None:
            raise ConfigError(
                f"{what} was called for a group of torch.distributed, which does not "
                f"exist here: leave `group` out"
            )

    def reduce(self, tensor: Any, op: Any, what: str, group: Any = None) -> Any:
        """Return a tensor, reduced; what is none is returned as it is."""
        self.check(what, group)
        if not isinstance(tensor, Tensor):
            return tensor
        name = str(getattr(op, "name", op)).lower()
        name = _OPERATIONS.get(name, name)
        if name == "mean" and not tensor.is_floating_point():
            tensor = tensor.float()
        return collectives.allreduce(tensor, name)

    def barrier(self, what: str) -> None:
        """Wait for all workers."""
        self.check(what)
        runtime.barrier()

    def broadcast(self, value: Any, root: int, what: str) -> Any:
        """Return the root worker's object, pickled where it has to be."""
        self.check(what)
        return collectives.broadcast_object(value, root, allow_pickle=True)

    def concatenated(self, tensor: Tensor, what: str, group: Any = None) -> Tensor:
        """Return all tensors, one after the other along the first dimension."""
        self.check(what, group)
        return collectives.allgather(tensor.detach())

    def every(self, tensor: Tensor, what: str, group: Any = None) -> list[Tensor]:
        """Return every worker's tensor, which may have any shape."""
        self.check(what, group)
        objects = collectives.allgather_object(tensor.detach().cpu())
        return [one.to(tensor.device) for one in objects]
