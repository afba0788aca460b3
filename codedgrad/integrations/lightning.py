"""Lightning: `Trainer(strategy=CodedStrategy())`, with the module as it is.

Lightning's loop stays. Where it asks the module for a loss, the strategy computes a
coded step instead, and `training_step` is what is run for each of its passes, also for
other workers' shards:

    train_dataloader -> a StepLoader: one StepShards a step, which is the loop's `batch`
    training_step    -> a coded step, whose passes call the module's training_step with
                        the batches of shards and pieces; self.log inside them notes
                        metrics, which come back for the whole step
    backward         -> adds the step's gradients to p.grad, see `gradients`

This module imports lightning; the package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.data import StepShards
from codedgrad.errors import ConfigError, missing_extra
from codedgrad.gradient import CodedGradient
from codedgrad.integrations import gradients, loaders
from codedgrad.integrations.collective import Collectives
from codedgrad.integrations.logged import Logged, Meters
from codedgrad.job import environment, lifecycle, runtime
from codedgrad.job.broadcast import broadcast_parameters
from codedgrad.job.settings import Settings, combine

try:
    from lightning.fabric.plugins import ClusterEnvironment
    from lightning.fabric.utilities import rank_zero
    from lightning.pytorch.plugins import MixedPrecision
    from lightning.pytorch.strategies import ParallelStrategy
except ImportError as error:
    raise missing_extra("lightning", error) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer
    from typing_extensions import Unpack

    from codedgrad.codes import Code
    from codedgrad.job.settings import Keywords

_STATE = "codedgrad"  # of a checkpoint, what CodedGradient.state_dict() returned
_TRAIN_LOADER = "train_dataloader()"  # the barrier before Lightning takes it


class CodedStrategy(ParallelStrategy):
    """Trains without waiting for stragglers.

        trainer = Trainer(strategy=CodedStrategy(), max_epochs=3)

    Start the script with `codedgrad run -n 4` or mpirun, one process for each worker.
    The batch size of the train DataLoader is that of one worker, as with DDP. Its
    shuffle, collate_fn, drop_last and num_workers are kept; the order of the samples
    comes from the seed.

    `training_step` must compute the loss from its arguments alone. It is called for
    parts of a batch, and for other workers' shards where these are late. What it logs
    with `self.log` is a mean over the samples of the whole step, on every worker,
    without a barrier. Hooks that take a `batch` get the step's `StepShards`.
    """

    strategy_name = "codedgrad"
    coded: CodedGradient | None = None  # of the fit that runs, with its reports

    def __init__(
        self,
        code: Code | None = None,
        *,
        weight: str | None = None,
        settings: Settings | None = None,
        plugins: Mapping[str, Any] | None = None,
        **keywords: Unpack[Keywords],
    ) -> None:
        """Join the job.

        Args:
            code: who computes what; None means `codes.spread`.
            weight: the name of what `training_step` returns in its dictionary as the
                weight of its loss, such as the number of tokens; None means that the
                loss is a mean over samples.
            settings: all settings in one object; None means the defaults.
            plugins: what Lightning's strategies take: accelerator, checkpoint_io,
                precision_plugin. The Trainer's own words are simpler.
            **keywords: single settings, as of `CodedGradient`. Without `seed` it is
                that of `seed_everything`, or 0.

        Raises:
            EnvironmentSetupError: there is no job, see `codedgrad.init`.
            TypeError: there is no such keyword.
        """
        lifecycle.init()
        super().__init__(cluster_environment=_Workers(), **(plugins or {}))
        self.set_world_ranks()
        if "seed" not in keywords and settings is None:
            keywords["seed"] = environment.lightning_seed()
        self._settings = combine(settings, keywords, CodedStrategy)
        self._code, self._weight = code, weight
        self._state: dict[str, Any] | None = None  # of the fit before, or a checkpoint
        self._failed = self._takes_loader = False
        self._batch_size = 1
        self._logged: Logged | None = None
        self._meters = Meters()
        self._collectives = Collectives("training_step")

    # ---- who is who ----

    def set_world_ranks(self) -> None:
        """Let only worker 0 write files and show progress."""
        rank_zero.rank_zero_only.rank = runtime.rank()

    @property
    def root_device(self) -> torch.device:
        """The device of this worker's model."""
        devices = self.parallel_devices or [torch.device("cpu")]
        return devices[runtime.local_rank() % len(devices)]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """How Lightning divides the data of evaluations."""
        return {"num_replicas": runtime.size(), "rank": runtime.rank()}

    @property
    def is_distributed(self) -> bool:
        """Whether Lightning has to divide data, and to reduce what is logged.

        It must not divide the data of training: any worker may need any of them.
        """
        return runtime.size() > 1 and not self._takes_loader

    # ---- the start and the end ----

    def setup_environment(self) -> None:
        """Refuse devices that would be other workers, before anything is built."""
        devices = self.parallel_devices or []
        cpus = bool(devices) and devices[0].type == "cpu"
        if cpus and len(devices) not in (1, runtime.local_size()):
            raise ConfigError(
                f"Trainer(devices={len(devices)}) in a job of {runtime.local_size()} "
                f"workers on this machine; CodedStrategy starts no processes: leave "
                f"`devices` out and start the script with codedgrad run -n "
                f"{len(devices)}"
            )
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Check the module, and give every worker the same values."""
        module = self.lightning_module
        assert module is not None  # Lightning connects it first
        self._failed = False
        if trainer.state.fn == "fit":
            self._check(module)
            transfer = loaders.ForBatches(module._on_before_batch_transfer)
            module._on_before_batch_transfer = transfer
            self._logged = Logged(module)
        self._meters.join(module, self._gather_state)
        super().setup(trainer)
        if trainer.state.fn == "fit":
            broadcast_parameters(module.state_dict())

    def _check(self, module: Any) -> None:
        """Refuse what cannot be run again for another worker's shard."""
        name = type(module).__name__
        if not module.automatic_optimization:
            raise ConfigError(
                f"{name} has automatic_optimization=False: its training_step makes "
                f"steps of optimizers itself, so it cannot be run for another worker's "
                f"shard. Let training_step return the loss, or write the loop with "
                f"codedgrad.CodedGradient"
            )
        if (
            torch.distributed.is_initialized()
            and torch.distributed.get_world_size() > 1
        ):
            raise ConfigError(
                "torch.distributed has a group of several processes, so another "
                "strategy (DDP, FSDP) seems to be at work; CodedStrategy exchanges "
                "gradients by itself: start the script with mpirun or codedgrad run, "
                "and leave torch.distributed out"
            )
        if self._layer_sync is not None:
            raise ConfigError(
                "sync_batchnorm=True waits for all workers in every layer; leave it "
                "out: batch statistics are those of a shard, and travel with the step"
            )
        precision = self.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is not None:
            raise ConfigError(
                'precision="16-mixed" scales losses outside of training_step, where '
                "passes for other workers would not see it; use "
                'precision="bf16-mixed"'
            )

    def model_to_device(self) -> None:
        """Move the model to this worker's device."""
        assert self.model is not None  # Lightning connects it first
        self.model.to(self.root_device)

    def begin(self) -> CodedGradient:
        """Return the CodedGradient, which the first step of a fit makes. Collective."""
        if self.coded is None:
            module, run = self.lightning_module, self._settings.run
            assert module is not None  # Lightning connects it first
            code = loaders.code_for(self._code, self._batch_size, run)
            self.coded = CodedGradient(module, code, settings=self._settings)
            if self._state is not None:
                self.coded.load_state_dict(self._state)
        return self.coded

    def on_exception(self, exception: BaseException) -> None:
        """Note that nobody is to be waited for."""
        self._failed = True
        super().on_exception(exception)

    def teardown(self) -> None:
        """End the exchange. Collective, unless training has failed."""
        coded, self.coded = self.coded, None
        if coded is not None:
            self._state = {"step": coded.step}  # another fit goes on from there
            coded.__exit__(RuntimeError if self._failed else None, None, None)
        self._meters.leave()
        if self.lightning_module is not None:
            self.lightning_module.__dict__.pop("_on_before_batch_transfer", None)
        super().teardown()

    # ---- data ----

    def process_dataloader(self, dataloader: object) -> object:
        """Take over the train DataLoader; others stay as they are."""
        taking, self._takes_loader = self._takes_loader, False
        if not taking:
            return dataloader
        seed = self._settings.run.seed
        sampler = loaders.take_over(dataloader, runtime.size(), seed)
        self._batch_size = sampler.batch_size // runtime.size()
        return loaders.StepLoader(self.begin, sampler)

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch; those of a step are moved pass by pass."""
        if isinstance(batch, StepShards):
            return batch
        return super().batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Any, _batch_idx: int) -> None:
        """Tell Lightning's loggers how many samples the step has."""
        module = self.lightning_module
        results = None if module is None else module.trainer._results
        if results is not None and isinstance(batch, StepShards):
            results.batch_size = batch.total

    # ---- a step ----

    def training_step(self, *args: Any) -> Any:
        """Compute a coded step; return its loss, whose backward brings the gradients.

        Raises:
            ConfigError: the batch is none of ours, or `training_step` does something
                that cannot be done for another worker's shard.
        """
        if not isinstance(args[0], StepShards):
            raise ConfigError(
                f"training_step is about to get {type(args[0]).__name__}, and no "
                f"step: CodedStrategy takes one train DataLoader, and no "
                f"training_step(dataloader_iter)"
            )
        shards, rest = args[0], args[1:]
        logged, coded = self._logged, self.begin()
        assert logged is not None  # setup made it

        def loss_fn(*arguments: Any) -> Any:
            with (
                self._collectives.passing(),
                logged.noting(),
                self._meters.unchanged(),
            ):
                batch = self._on_device(loaders.batch_of(arguments))
                out = super(CodedStrategy, self).training_step(batch, *rest)
                return (*self._loss_of(out), logged.metrics())

        loss, found = gradients.compute(coded, loss_fn, shards)
        logged.replay(coded.metrics, shards.total, self.root_device)
        return gradients.with_backward(loss.to(self.root_device), found)

    def _on_device(self, batch: Any) -> Any:
        """Do to the batch of a pass what Lightning's loop does to a batch."""
        module = self.lightning_module
        assert module is not None  # Lightning connects it first
        batch = self.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return super().batch_to_device(batch, self.root_device, dataloader_idx=0)

    def _loss_of(self, out: Any) -> tuple[Any, ...]:
        """Return loss and weight in what `training_step` has returned."""
        if isinstance(out, Tensor) and self._weight is None:
            return (out,)
        wanted = ["loss"] if self._weight is None else ["loss", self._weight]
        if isinstance(out, dict) and all(out.get(name) is not None for name in wanted):
            return tuple(out[name] for name in wanted)
        got = sorted(out) if isinstance(out, dict) else type(out).__name__
        either = "a loss, or a" if self._weight is None else "a"
        raise ConfigError(
            f"training_step returned {got}; CodedStrategy wants {either} dictionary "
            f"with {' and '.join(map(repr, wanted))}. To leave a batch out, return a "
            f"weight of 0: CodedStrategy(weight=...)"
        )

    # ---- checkpoints ----

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, on worker 0, with what the next steps need."""
        if self.coded is not None:
            checkpoint[_STATE] = self.coded.state_dict()
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' states, and go on from the checkpoint's step."""
        self._state = checkpoint.get(_STATE)
        super().load_optimizer_state_dict(checkpoint)

    # ---- collectives ----

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce a tensor over all workers. A barrier."""
        what = "reduce(), or self.log(sync_dist=True)"
        return self._collectives.reduce(tensor, reduce_op or "sum", what, group)

    def barrier(self, name: str | None = None) -> None:
        """Wait for all workers."""
        self._takes_loader = name == _TRAIN_LOADER
        self._collectives.barrier("barrier()")

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return worker `src`'s object. A barrier."""
        return self._collectives.broadcast(obj, src, "broadcast()")

    def all_gather(
        self, tensor: Tensor, group: Any = None, sync_grads: bool = False
    ) -> Tensor:
        """Return every worker's tensor, stacked; one worker's as it is. A barrier."""
        if sync_grads and tensor.requires_grad:
            raise ConfigError(
                "all_gather(sync_grads=True) cannot send gradients to other workers; "
                "compute the loss from the batch of training_step alone"
            )
        one = tensor.unsqueeze(0)
        every = self._collectives.concatenated(one, "all_gather()", group)
        return every.squeeze(0) if runtime.size() == 1 else every

    def _gather_state(self, tensor: Tensor, group: Any = None) -> list[Tensor]:
        return self._collectives.every(tensor, "a torchmetrics.Metric's sync", group)


class _Workers(ClusterEnvironment):
    """Tells Lightning who the workers are; a launcher has started them."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # nobody connects to it

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return lifecycle.is_initialized()

    def world_size(self) -> int:
        return runtime.size()

    def set_world_size(self, size: int) -> None:
        """Nothing can change the size of the job."""

    def global_rank(self) -> int:
        return runtime.rank()

    def set_global_rank(self, rank: int) -> None:
        """Nothing can change who this worker is."""

    def local_rank(self) -> int:
        return runtime.local_rank()

    def node_rank(self) -> int:
        return runtime.cross_rank()
