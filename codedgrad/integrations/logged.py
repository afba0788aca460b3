"""What a LightningModule logs in the passes of a step, and torchmetrics in its job.

`self.log` inside a pass notes a metric of the pass (see `codedgrad.step.metrics`).
After the step all workers have the same values for the whole batch, and log those. A
worker whose own pass was needless does not know with which words the module has logged
a name; so all workers tell them to one another where a name comes for the first time.
"""

from __future__ import annotations

import inspect
import numbers
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import ConfigError
from codedgrad.job import collectives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Words of `self.log` that a step makes needless.
_DROPPED = {"self", "name", "value", "sync_dist", "sync_dist_group", "enable_graph"}
_DROPPED |= {"metric_attribute", "batch_size"}
_REDUCTIONS = {"mean", "avg", torch.mean}
_METRIC = "torchmetrics.Metric"


class Logged:
    """Notes what the passes of a step log; logs it once for the whole step."""

    def __init__(self, module: Any) -> None:
        """Stand in for `log` of a module and of the LightningModules inside of it."""
        self._module = module
        mro: tuple[Any, ...] = type(module).__mro__
        kind = next(c for c in mro if c.__name__ == "LightningModule")
        self._modules = [m for m in module.modules() if isinstance(m, kind)]
        self._signature = inspect.signature(kind.log)
        self._noted: dict[str, Any] = {}  # the values of the pass
        self._seen: dict[str, dict[str, Any]] = {}  # words, by name, on this worker
        self._words: dict[str, dict[str, Any]] = {}  # the same on all workers

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, `self.log` of the module notes metrics of a pass."""
        self._noted = {}
        for module in self._modules:
            module.__dict__["log"] = self._note
        try:
            yield
        finally:
            for module in self._modules:
                module.__dict__.pop("log", None)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the pass."""
        return self._noted

    def _note(self, *args: Any, **kwargs: Any) -> None:
        given = self._signature.bind(self._module, *args, **kwargs)
        given.apply_defaults()
        name, value = given.arguments["name"], given.arguments["value"]
        words = {k: v for k, v in given.arguments.items() if k not in _DROPPED}
        reduction = words.pop("reduce_fx")
        self._noted[name] = _number(name, value, reduction)
        self._seen[name] = words

    def replay(
        self, metrics: dict[str, float], samples: int, device: torch.device
    ) -> None:
        """Log the metrics of a step. Collective where a name is new.

        Args:
            metrics: by name, the same on all workers.
            samples: of the step.
            device: of the module.
        """
        new = [name for name in metrics if name not in self._words]
        if new:
            mine = {name: self._seen[name] for name in new if name in self._seen}
            for words in reversed(collectives.allgather_object(mine)):
                self._words.update(words)
        for name, value in metrics.items():
            tensor = torch.tensor(value, device=device)
            self._module.log(name, tensor, batch_size=samples, **self._words[name])


def _number(name: str, value: Any, reduction: Any) -> Any:
    """Return a value as a metric of a pass: a mean over its samples.

    Raises:
        ConfigError: it is no number, or is not to be averaged.
    """
    if any(f"{c.__module__}".startswith("torchmetrics") for c in type(value).__mro__):
        raise ConfigError(
            f"training_step logs {name!r} as a {_METRIC}, whose state would count the "
            f"shards that this worker has computed for others, and miss its own that "
            f"others have; log a number of the batch instead: self.log({name!r}, "
            f"(pred == y).float().mean())"
        )
    if reduction not in _REDUCTIONS:
        raise ConfigError(
            f"training_step logs {name!r} with reduce_fx={reduction!r}; a step's "
            f"metric is a mean over its samples: leave reduce_fx out, or log it in "
            f"another hook"
        )
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach()
        return value if value.is_floating_point() else value.float()
    if isinstance(value, numbers.Real):
        return float(value)
    raise ConfigError(
        f"training_step logs {name!r} as a {type(value).__name__}; wanted one number"
    )


class Meters:
    """The torchmetrics inside of a module, which gather by the job's collectives."""

    def __init__(self) -> None:
        """Begin without any."""
        self._own: list[tuple[str, Any, Any, Any]] = []

    def join(self, module: Any, gather: Callable[..., list[Tensor]]) -> None:
        """Let every Metric of a module gather its state by `gather`."""
        self.leave()
        for name, meter in module.named_modules():
            if hasattr(meter, "distributed_available_fn"):
                before = meter.distributed_available_fn, meter.dist_sync_fn
                self._own.append((name, meter, *before))
                meter.distributed_available_fn = _always
                meter.dist_sync_fn = meter.dist_sync_fn or gather

    def leave(self) -> None:
        """Let them gather as before."""
        for _, meter, available, sync in self._own:
            meter.distributed_available_fn, meter.dist_sync_fn = available, sync
        self._own = []

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Around a pass, which must not update any of them.

        Raises:
            ConfigError: it did; the message names the metric.
        """
        before = [meter._update_count for _, meter, *_ in self._own]
        yield
        for count, (name, meter, *_) in zip(before, self._own, strict=True):
            if meter._update_count != count:
                _number(name, meter, "mean")


def _always() -> bool:
    return True
