"""Hugging Face: `CodedTrainer` in place of `transformers.Trainer`.

The loop stays the Trainer's. Its train DataLoader gives one `StepShards` a step, and
`training_step` computes a coded step, whose passes call the Trainer's `compute_loss`
with the batches of shards and pieces, also for other workers.

This module imports transformers and accelerate; the package does not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codedgrad.data import StepShards
from codedgrad.errors import ConfigError, missing_extra
from codedgrad.gradient import CodedGradient
from codedgrad.integrations import gradients, loaders
from codedgrad.integrations.accelerate import join
from codedgrad.job import checkpoint, lifecycle, runtime
from codedgrad.job.broadcast import broadcast_parameters
from codedgrad.job.settings import Settings, combine
from codedgrad.step.trial import rehearsing

try:
    from transformers import Trainer
except ImportError as error:
    raise missing_extra("transformers", error) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from codedgrad.codes import Code

_STATE = "codedgrad.pt"  # in the folder of a checkpoint
_ITEMS = "codedgrad_items"  # the metric that counts what losses are means over
_IGNORED = -100  # the label of what no loss looks at


class CodedTrainer(Trainer):
    """A Trainer that does not wait for stragglers.

        trainer = CodedTrainer(model, args, train_dataset=data)

    Start the script with `codedgrad run -n 4` or mpirun, one process for each worker.
    `per_device_train_batch_size` is the batch size of a worker. Where the model takes
    `num_items_in_batch`, as nearly all do, the loss of a step is the mean over all of
    its labels that are not -100, over all workers and accumulated batches, whoever
    computed what; `average_tokens_across_devices=False` makes it a mean over samples.

    `compute_loss` must compute the loss from its inputs alone. It is called for parts
    of a batch, and for other workers' shards where these are late.
    """

    def __init__(
        self,
        *args: Any,
        code: Code | None = None,
        settings: Settings | None = None,
        **kwargs: Any,
    ) -> None:
        """Join the job, and prepare as a Trainer does.

        Args:
            *args: the Trainer's.
            code: who computes what; None means `codes.spread`.
            settings: all settings in one object; None means the defaults, with the
                Trainer's seed.
            **kwargs: the Trainer's.

        Raises:
            ConfigError: a training argument fits no coded training; it says which.
            EnvironmentSetupError: there is no job, see `codedgrad.init`.
        """
        lifecycle.init()
        super().__init__(*args, **kwargs)
        _check(self.args)
        words = {"seed": self.args.seed} if settings is None else {}
        self._settings = combine(settings, words)  # type: ignore[arg-type]
        self._code = code
        self._weighted = bool(self.args.average_tokens_across_devices)
        # From here on it is done by the weights of passes, and not by the Trainer.
        self.args.average_tokens_across_devices = False
        self._state: dict[str, Any] | None = None  # of a checkpoint
        self._flos = 0.0  # of this worker's passes
        self._items, self._mean = 0.0, 0.0  # of the batches accumulated so far
        self.coded: CodedGradient | None = None

    # ---- who is who ----

    def create_accelerator_and_postprocess(self) -> None:
        """Tell the Trainer's Accelerator who the workers are."""
        super().create_accelerator_and_postprocess()
        self._collectives = join(self.accelerator, "compute_loss")
        self.gather_function = functools.partial(
            self.accelerator.gather_for_metrics,
            use_gather_object=self.args.eval_use_gather_object,
        )

    # ---- the start and the end ----

    def get_train_dataloader(self) -> Any:
        """Return a loader of steps in place of the Trainer's loader of batches.

        Raises:
            ConfigError: the Trainer's cannot be taken over.
        """
        with _unprepared(self.accelerator):
            plain = super().get_train_dataloader()
        seed = self.args.data_seed
        seed = self.args.seed if seed is None else seed
        sampler = loaders.take_over(plain, runtime.size(), seed)
        return loaders.data_loader_of_steps(self._begun, sampler)

    def _begun(self) -> CodedGradient:
        assert self.coded is not None  # _prepare_for_training makes it
        return self.coded

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Give every worker the same values, and open the exchange. Collective."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        run, size = self._settings.run, self._train_batch_size
        code = loaders.code_for(self._code, size, run)
        broadcast_parameters(self.model.state_dict())
        self.coded = CodedGradient(self.model, code, settings=self._settings)
        state, self._state = self._state, None
        if state is not None:
            self.coded.load_state_dict(state)
        self._items, self._mean = 0.0, 0.0
        return prepared

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and end the exchange. Collective, unless training fails."""
        try:
            result = super()._inner_training_loop(*args, **kwargs)
        except BaseException as error:
            if self.coded is not None:
                self.coded.__exit__(type(error), error, None)
            raise
        self._begun().close()
        return result

    # ---- a step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *_: Any
    ) -> tuple[Any, None]:
        """Return the next steps, each of which is looked up when it is needed."""
        return _Ahead(epoch_iterator, num_batches), None

    def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """Compute a coded step; add its gradient to `p.grad`, and return its loss.

        With gradient accumulation, `p.grad` is the mean over all items so far, and
        what is returned adds up to the mean loss.
        """
        if not isinstance(inputs, StepShards):
            raise ConfigError(
                f"training_step got a {type(inputs).__name__} and no step; leave "
                f"get_train_dataloader as it is, or return take_over's loader from it"
            )
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        coded = self._begun()
        loss_fn = functools.partial(self._loss, model)
        loss, found = gradients.compute(coded, loss_fn, inputs)
        items = coded.metrics.get(_ITEMS, float(inputs.total))
        self._items += items
        share = items / self._items if self._items else 0.0
        if share < 1.0:
            for p in coded.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(1.0 - share)
        found.add(share)
        before = self._mean
        if share:
            self._mean += share * (float(loss) - before)
        step_loss = torch.tensor(self._mean - before, device=self.args.device)
        if self.accelerator.sync_gradients:
            self._items, self._mean = 0.0, 0.0
        return step_loss

    def _loss(self, model: Any, *arguments: Any) -> Any:
        """Return loss, weight and metrics of a pass."""
        with self._collectives.passing():
            batch = self._prepare_inputs(loaders.batch_of(arguments))
            count = self._count(batch)
            if not rehearsing():
                self._flos += float(super().floating_point_ops(batch))
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch, num_items_in_batch=count)
        if count is None:
            return loss
        if self.args.gradient_accumulation_steps == 1:
            return loss, count
        return loss, count, {_ITEMS: count}

    def _count(self, batch: Any) -> Tensor | None:
        """Return the number of labels that the loss of a batch is a mean over.

        They are counted as the Trainer counts them. None stands for samples.
        """
        counts = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if not self._weighted or not counts or not isinstance(batch, Mapping):
            return None
        labels = batch.get("shift_labels")
        if labels is None:
            labels = batch.get("labels")
            if isinstance(labels, Tensor) and self._loss_shifts_labels:
                labels = labels[..., 1:]
        return labels.ne(_IGNORED).sum() if isinstance(labels, Tensor) else None

    def floating_point_ops(self, inputs: Any) -> float:
        """Return the operations of this worker's passes since it was asked before."""
        if not isinstance(inputs, StepShards):
            return float(super().floating_point_ops(inputs))
        flos, self._flos = self._flos, 0.0
        return flos

    # ---- checkpoints ----

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False
    ) -> None:
        """Save the model, on worker 0. A barrier where it is part of a checkpoint."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if _internal_call:  # the others look whether the folder is there
            self._collectives.barrier("save_model()")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.coded is not None:
            checkpoint.save(Path(output_dir) / _STATE, self.coded.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / _STATE).exists():
            self._state = torch.load(path, weights_only=True)


def _check(args: Any) -> None:
    """Refuse training arguments that fit no coded training.

    Raises:
        ConfigError: the message names the argument, and says what to do.
    """
    refused: dict[str, tuple[Any, str]] = {
        "fp16": (args.fp16, "use bf16=True: passes do not scale losses"),
        "deepspeed": (args.deepspeed, "every worker holds the whole model here"),
        "fsdp": (args.fsdp, "every worker holds the whole model here"),
        "auto_find_batch_size": (
            args.auto_find_batch_size,
            "all workers must have the same batch size: give it",
        ),
        "include_num_input_tokens_seen": (
            args.include_num_input_tokens_seen not in (False, "no"),
            "the tokens of other workers are not seen here: leave it out",
        ),
    }
    for name, (given, remedy) in refused.items():
        if given:
            raise ConfigError(f"{name}={getattr(args, name)!r}: {remedy}")
    if args.n_gpu > 1:
        raise ConfigError(
            f"this worker sees {args.n_gpu} GPUs, which the Trainer would use as one; "
            f"let each worker see its own by CUDA_VISIBLE_DEVICES"
        )


class _Ahead:
    """Some steps in a row, none of which is taken before it is asked for.

    So loader processes can read ahead of each.
    """

    def __init__(self, steps: Iterator[Any], count: int) -> None:
        self._steps, self._count = steps, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._steps, self._count)


@contextmanager
def _unprepared(accelerator: Any) -> Iterator[None]:
    """Inside, an Accelerator gives a DataLoader back as it is."""
    as_it_is: Callable[[Any], Any] = lambda loader: loader  # noqa: E731
    accelerator.__dict__["prepare"] = as_it_is
    try:
        yield
    finally:
        del accelerator.__dict__["prepare"]
