"""Accelerate: an `Accelerator` in a job of codedgrad.

    accelerator = Accelerator()
    join(accelerator)

Accelerate takes each process for one alone, since nobody has told it otherwise, and
moves, casts, tracks and saves as in a process alone. `join` tells it who the workers
are, so that only worker 0 is the main process, and its collectives are those of the
job. Gradients are not its business: `coded.backward` exchanges them.

This module imports accelerate; the package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.errors import ConfigError, missing_extra
from codedgrad.integrations.collective import Collectives
from codedgrad.job import collectives, environment, lifecycle, runtime

# Before Accelerate looks: it takes MPI's variables for a wish to train with DDP.
environment.keep_others_alone()

try:
    from accelerate import PartialState
    from accelerate.utils import recursively_apply
except ImportError as error:
    raise missing_extra("accelerate", error) from error

if TYPE_CHECKING:
    from accelerate import Accelerator


def join(accelerator: Accelerator, function: str = "the loss function") -> Collectives:
    """Let an Accelerator know the workers of the job. Collective the first time.

    From now on `process_index`, `num_processes`, `is_main_process` and the like are
    those of the job. `gather`, `gather_for_metrics`, `reduce`, `pad_across_processes`
    and `wait_for_everyone` are the job's collectives, and DataLoaders that it prepares
    give each worker a part of the batches, as for an evaluation. `backward` is refused.

    Args:
        accelerator: the Accelerator.
        function: what the passes of a step call, for messages.

    Returns:
        Its collectives.

    Raises:
        ConfigError: the Accelerator trains with several processes itself.
        EnvironmentSetupError: there is no job, see `codedgrad.init`.
    """
    lifecycle.init()
    kind = accelerator.distributed_type
    kind = str(getattr(kind, "value", kind))
    if kind != "NO":
        raise ConfigError(
            f"the Accelerator trains with {kind}, and codedgrad exchanges gradients, "
            f"too: start the script with codedgrad run or mpirun instead of accelerate "
            f"launch, and call codedgrad.init() before Accelerator()"
        )
    if accelerator.mixed_precision == "fp16":
        raise ConfigError(
            'mixed_precision="fp16" scales losses in accelerator.backward, which the '
            'passes of a step do not call; use mixed_precision="bf16"'
        )
    for state in (PartialState(), accelerator.state):
        state.num_processes = runtime.size()
        state.process_index = runtime.rank()
        state.local_process_index = runtime.local_rank()
    job = _Job(accelerator, Collectives(function))
    for name in _Job.REPLACED:
        setattr(accelerator, name, getattr(job, name))
    return job.collectives


class _Job:
    """The methods of an Accelerator that several workers change."""

    REPLACED = (
        "backward",
        "gather",
        "gather_for_metrics",
        "pad_across_processes",
        "reduce",
        "wait_for_everyone",
    )

    def __init__(self, accelerator: Accelerator, collectives: Collectives) -> None:
        self._gradient_state = accelerator.gradient_state
        self.collectives = collectives

    def backward(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            "accelerator.backward(loss) would leave each worker its own gradient; let "
            "coded.backward(loss_fn, shards) compute the loss and its gradient"
        )

    def gather(self, tensor: Any) -> Any:
        def one(t: Tensor) -> Tensor:
            whole = t.unsqueeze(0) if t.dim() == 0 else t
            return self.collectives.concatenated(whole, "gather()")

        return recursively_apply(one, tensor, error_on_other_type=True)

    def gather_for_metrics(
        self, input_data: Any, use_gather_object: bool = False
    ) -> Any:
        objects = use_gather_object
        try:
            recursively_apply(lambda t: t, input_data, error_on_other_type=True)
        except TypeError:
            objects = True
        state = self._gradient_state
        surplus = state.end_of_dataloader and state.remainder > 0
        kept = slice(None, state.remainder if surplus else None)
        if not objects:
            return recursively_apply(lambda t: t[kept], self.gather(input_data))
        self.collectives.check("gather_for_metrics()")
        every = collectives.allgather_object(input_data, allow_pickle=True)
        return [x for one in every for x in one][kept]

    def pad_across_processes(
        self, tensor: Any, dim: int = 0, pad_index: int = 0, pad_first: bool = False
    ) -> Any:
        def one(t: Tensor) -> Tensor:
            if not -t.dim() <= dim < t.dim():
                return t
            size = torch.tensor(t.shape[dim])
            what = "pad_across_processes()"
            largest = int(self.collectives.reduce(size, "max", what))
            shape = list(t.shape)
            shape[dim] = largest
            padded = t.new_full(shape, pad_index)
            begin = largest - t.shape[dim] if pad_first else 0
            padded.narrow(dim, begin, t.shape[dim]).copy_(t)
            return padded

        return recursively_apply(one, tensor, error_on_other_type=True)

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        def one(t: Tensor) -> Tensor:
            return self.collectives.reduce(t, reduction, "reduce()") * scale

        return recursively_apply(one, tensor, error_on_other_type=True)

    def wait_for_everyone(self) -> None:
        self.collectives.barrier("wait_for_everyone()")
