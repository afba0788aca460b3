"""Lightning and the Trainer: a calm step, and one with a worker that is 8 x slow.

    mpirun -n 4 python benchmarks/bench_frameworks.py --out FILE.json

A pass sleeps for as long as its samples take, module by module, so that two cores are
enough for four workers. A step is the time from one `on_train_batch_end` (Trainer:
`on_step_end`) to the next, so the framework's own loop is in it. The slow worker's time
is stretched between the model's modules, in every step.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
import warnings
from typing import TYPE_CHECKING, Any

import lightning
import torch
import transformers
from accelerate.state import AcceleratorState
from harness import arguments, say, summary, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import codedgrad
from codedgrad.integrations.huggingface import CodedTrainer
from codedgrad.integrations.lightning import CodedStrategy

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, LAYERS, WARM_UP = 16, 8, 5
FAULTS = {"calm": "", "slow": "slow:worker=1,factor=8"}


class Sleep(nn.Module):
    """A layer of a device that the host waits for."""

    def __init__(self, sample_s: float) -> None:
        """`sample_s`: seconds for each sample."""
        super().__init__()
        self.sample_s = sample_s

    def forward(self, x: Tensor) -> Tensor:
        """Wait, and return `x`."""
        time.sleep(self.sample_s * len(x))
        return x


class Model(nn.Module):
    """A layer with parameters, and others that sleep."""

    def __init__(self, pass_s: float) -> None:
        """`pass_s`: seconds of a pass over a worker's samples."""
        super().__init__()
        sleeps = [Sleep(pass_s / BATCH / LAYERS) for _ in range(LAYERS)]
        self.body = nn.Sequential(nn.Linear(8, 8), *sleeps)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the loss, as a model of transformers does."""
        return {"loss": self.body(x).square().mean()}


class Module(lightning.LightningModule):
    """The same model for Lightning."""

    def __init__(self, model: Model, note: Callable[[], None]) -> None:
        """`note`: called after every step."""
        super().__init__()
        self.model, self.note = model, note

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss, and log it."""
        loss = self.model(batch[0])["loss"]
        self.log("loss", loss, sync_dist=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.note()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), 0.01)


class Clock(transformers.TrainerCallback):
    """Notes the time after every step of a Trainer."""

    def __init__(self, note: Callable[[], None]) -> None:
        """`note`: called after every step."""
        self.note = note

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.note()


def with_lightning(steps: int, pass_s: float, faults: str) -> list[float]:
    """Return the seconds of each step."""
    times: list[float] = []
    trainer = lightning.Trainer(
        strategy=CodedStrategy(faults=faults),
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = torch.ones(steps * BATCH * codedgrad.size(), 8)
    module = Module(Model(pass_s), lambda: times.append(time.perf_counter()))
    trainer.fit(module, DataLoader(TensorDataset(x), BATCH))
    return between(times)


def with_trainer(steps: int, pass_s: float, faults: str) -> list[float]:
    """Return the seconds of each step."""
    times: list[float] = []
    AcceleratorState._reset_state(reset_partial_state=True)
    run = codedgrad.settings.RunSettings(faults=faults)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CodedTrainer(
            Model(pass_s),
            transformers.TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=[{"x": torch.ones(8)}] * (BATCH * codedgrad.size()),
            callbacks=[Clock(lambda: times.append(time.perf_counter()))],
            settings=codedgrad.Settings(run=run),
        )
        trainer.train()
    return between(times)


def between(times: list[float]) -> list[float]:
    """Return the durations of the steps after those of warming up."""
    steps = [b - a for a, b in itertools.pairwise(times)]
    return steps[min(WARM_UP, len(steps) - 1) :]


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure both frameworks; worker 0 writes and prints."""
    args = arguments(str(__doc__)).parse_args(words)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    codedgrad.init()
    steps, pass_s = (4, 0.01) if args.toy else (40, 0.1)
    results: dict[str, Any] = {"pass_ms": pass_s * 1e3, "workers": codedgrad.size()}
    for name, train in (("lightning", with_lightning), ("trainer", with_trainer)):
        for case, slowness in FAULTS.items():
            faults = slowness if codedgrad.size() > 1 else ""
            results[f"{name} {case}"] = summary(train(steps, pass_s, faults))
        calm, slow = (results[f"{name} {case}"]["median_ms"] for case in FAULTS)
        results[f"{name} slow / calm"] = round(slow / calm, 3)
        say(f"{name}: calm {calm} ms, slow {slow} ms, {slow / calm:.2f} x")
    write(args.out, "bench_frameworks", results)
    return results


if __name__ == "__main__":
    main()
