"""Lightning: an unmodified module trains as in one process, whoever is late."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import lightning
import lightning_digits
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import codedgrad
from codedgrad.integrations.lightning import CodedStrategy

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES, BATCH = 84, 32  # the last step of an epoch does not divide evenly
SLOW = "slow:worker=1,factor=8;stall:worker=1,step=4,seconds=0.3"


class Module(lightning.LightningModule):
    def __init__(self, dropout: float = 0.0, optimizer: str = "adam") -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)
        )
        self.right = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.optimizer, self.losses = optimizer, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        out = self.net(x)
        loss = nn.functional.cross_entropy(out, y)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log_dict({"accuracy": (out.argmax(1) == y).float().mean()})
        return {"loss": loss, "out": out}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self.net(x)
        self.right(out, y)
        self.log("val_right", self.right)
        self.log("val_loss", nn.functional.cross_entropy(out, y), sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Listed(Dataset[Any]):
    """A map-style dataset of dictionaries that draws random numbers."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return {"x": x + 0.1 * torch.randn(8), "y": y}


class Augmented(Module):
    passes = 0  # for others

    def on_train_end(self) -> None:
        reports = self.trainer.strategy.coded.record.reports
        self.passes = sum(report.redundant_passes for report in reports)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch["x"], batch["y"]) if isinstance(batch, dict) else batch


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 8, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (SAMPLES,), generator=generator))


def fit(module: Any, strategy: Any, **words: Any) -> Any:
    """Train; with None as the strategy in this process alone, on the same batches."""
    workers = 1 if strategy is None else codedgrad.size()
    each = BATCH // codedgrad.size()
    words.setdefault("enable_checkpointing", False)
    path, data = words.pop("ckpt_path", None), words.pop("data", samples())
    loaded = words.pop("loaded", {})
    trainer = lightning.Trainer(
        strategy="auto" if strategy is None else strategy,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **words},
    )
    train = DataLoader(data, each * codedgrad.size() // workers, **loaded)
    held_out = DataLoader(samples(), SAMPLES // 4 // workers)
    trainer.fit(module, train, held_out, ckpt_path=path)
    return trainer


def bits(module: nn.Module) -> str:
    h = hashlib.sha256()
    for name, t in module.state_dict().items():
        h.update(name.encode() + t.numpy().tobytes())
    return h.hexdigest()


def everywhere(value: Any) -> None:
    """All workers have this value."""
    assert len({str(v) for v in codedgrad.allgather_object(value)}) == 1


@pytest.mark.parametrize(
    ("words", "optimizer", "tolerance"),
    [
        ({"gradient_clip_val": 0.3}, "adam", 1e-5),
        ({"accumulate_grad_batches": 2}, "adam", 1e-5),
        ({"max_epochs": 1}, "lbfgs", 1e-4),
        ({"precision": "bf16-mixed"}, "adam", 5e-2),
        ({"precision": "64-true"}, "adam", 1e-5),
        ({"limit_train_batches": 2}, "adam", 1e-5),
    ],
    ids=["clipped", "accumulated", "lbfgs", "bf16", "double", "limited"],
)
def test_it_trains_as_one_process_does(
    words: Any, optimizer: str, tolerance: float
) -> None:
    torch.manual_seed(3)
    one = Module(optimizer=optimizer)
    torch.manual_seed(3 + codedgrad.rank())  # worker 0's values count
    several = Module(optimizer=optimizer)
    alone, together = fit(one, None, **words), fit(several, CodedStrategy(), **words)
    assert several.losses == pytest.approx(one.losses, abs=tolerance)
    for p, q in zip(one.parameters(), several.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=tolerance, rtol=0)
    assert set(together.callback_metrics) == set(alone.callback_metrics)
    for name, value in alone.callback_metrics.items():
        got = float(together.callback_metrics[name])
        assert got == pytest.approx(float(value), abs=tolerance), name
    everywhere([bits(several), several.losses])
    everywhere({k: float(v) for k, v in together.callback_metrics.items()})


def test_who_is_late_changes_no_bit_and_is_helped() -> None:
    def digest(faults: str) -> tuple[str, list[float], int]:
        torch.manual_seed(3)
        module = Augmented(dropout=0.3)
        strategy = CodedStrategy(same_bits=True, seed=5, faults=faults)
        fit(module, strategy, data=Listed(samples()), loaded={"shuffle": True})
        return bits(module), module.losses, module.passes

    calm = digest("")
    slow = digest(SLOW if codedgrad.size() > 1 else "")
    assert calm[:2] == slow[:2]
    everywhere(calm[:2])
    assert codedgrad.allreduce(slow[2], "sum") > 0 or codedgrad.size() == 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_is_helped_in_whole_shards(reduction: str) -> None:
    """The loop's batch is rehearsed as any other is."""

    class Reduced(Module):
        code = ""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self.net(batch["x"])
            return nn.functional.cross_entropy(out, batch["y"], reduction=reduction)

        def on_train_end(self) -> None:
            self.code = self.trainer.strategy.coded.code.describe()

    module, n = Reduced(dropout=0.3), codedgrad.size()
    strategy = CodedStrategy(code=codedgrad.codes.spread(n, micro=4))
    fit(module, strategy, data=Listed(samples()), max_steps=2, limit_val_batches=0)
    assert ("help=shards" in module.code) == (reduction == "sum" and n > 1)


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["early", "at-the-end", "late"])
def test_a_resumed_run_has_the_same_bits(stop: int, tmp_path: Path) -> None:
    folder = codedgrad.broadcast_object(str(tmp_path))

    def run(max_steps: int, path: str | None = None) -> tuple[str, list[float]]:
        torch.manual_seed(3)
        module = Module(dropout=0.3)
        callbacks = [ModelCheckpoint(folder, f"at{stop}", every_n_train_steps=stop)]
        fit(
            module,
            CodedStrategy(same_bits=True),
            loaded={"shuffle": True},
            max_epochs=-1,
            max_steps=max_steps,
            ckpt_path=path,
            callbacks=callbacks if path is None and max_steps == stop else None,
            enable_checkpointing=path is None and max_steps == stop,
        )
        return bits(module), module.losses

    straight = run(6)
    first = run(stop)
    resumed = run(6, f"{folder}/at{stop}.ckpt")
    assert first[1] + resumed[1] == straight[1]
    assert resumed[0] == straight[0]
    everywhere(resumed)


def test_a_trainer_is_used_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module, folder = Module(), codedgrad.broadcast_object(str(tmp_path))
    train, held_out = DataLoader(samples(), 8), DataLoader(samples(), 7)
    callbacks = [ModelCheckpoint(folder, monitor="loss", save_last=True)]
    words: dict[str, Any] = {"accelerator": "cpu", "logger": False}
    words |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        strategy=CodedStrategy(), max_epochs=1, callbacks=callbacks, **words
    )
    (before,) = trainer.validate(module, held_out, verbose=False)
    trainer.fit(module, train, held_out)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, train, held_out)
    (after,) = trainer.validate(module, held_out, verbose=False)
    assert len(module.losses) == 2 * len(DataLoader(samples(), 8 * codedgrad.size()))
    assert after["val_loss"] < before["val_loss"]
    other = Module()
    best = trainer.checkpoint_callback.best_model_path
    fit(other, CodedStrategy(), ckpt_path=best, max_epochs=3)
    everywhere([before, after, best, bits(module), bits(other)])


class Weighted(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        kept = y > 0
        loss = nn.functional.cross_entropy(self.net(x)[kept], y[kept])
        return {"loss": loss, "kept": kept.sum()}


def test_a_loss_may_be_a_mean_over_something_else_than_samples() -> None:
    torch.manual_seed(3)
    one = Weighted()
    torch.manual_seed(3)
    several = Weighted()
    fit(one, None)
    fit(several, CodedStrategy(weight="kept"))
    assert several.losses == pytest.approx(one.losses, abs=1e-5)


def test_the_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = lightning_digits.main(["--epochs", "2", "--batch-size", "64"])
    assert metrics["val_accuracy"] > 0.5
    everywhere(metrics)


def test_workers_draw_together(tmp_path: Path) -> None:
    strategy = CodedStrategy()
    assert strategy.is_global_zero == (codedgrad.rank() == 0)
    n = codedgrad.size()
    mine = torch.tensor([codedgrad.rank()])
    assert strategy.reduce(mine, reduce_op="sum") == n * (n - 1) // 2
    assert strategy.reduce(mine) == (n - 1) / 2
    shape: Tensor = strategy.all_gather(mine.float())
    assert shape.tolist() == ([[float(r)] for r in range(n)] if n > 1 else [0.0])
    assert strategy.broadcast(tmp_path / str(codedgrad.rank())).name == "0"
    assert strategy.reduce_boolean_decision(codedgrad.rank() == 0, all=False)
    assert strategy.reduce_boolean_decision(codedgrad.rank() == 0) == (n == 1)
