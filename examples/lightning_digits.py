"""Handwritten digits with Lightning; the strategy is the only line about codedgrad.

    codedgrad run -n 4 examples/lightning_digits.py

and with a worker that is slow on purpose:

    export CODEDGRAD_FAULTS="slow:worker=1,factor=8"
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from codedgrad.integrations.lightning import CodedStrategy


class Digits(lightning.LightningModule):
    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * 4 * 4, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        loss = nn.functional.cross_entropy(out, y)
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        self.log("accuracy", (out.argmax(1) == y).float().mean(), on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        right = (self.net(x).argmax(1) == y).float().mean()
        self.log("val_accuracy", right, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def data(batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    whole = TensorDataset(x, torch.from_numpy(digits.target))
    seeded = torch.Generator().manual_seed(0)
    train, held_out = random_split(whole, [1597, 200], generator=seeded)
    return (
        DataLoader(train, batch_size, shuffle=True),
        DataLoader(held_out, 100),
    )


def main(words: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32, help="of one worker")
    parser.add_argument("--resume", help="a checkpoint")
    args = parser.parse_args(words)
    lightning.seed_everything(1)
    trainer = lightning.Trainer(
        strategy=CodedStrategy(),
        accelerator="cpu",
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
    )
    train, held_out = data(args.batch_size)
    trainer.fit(Digits(), train, held_out, ckpt_path=args.resume)
    metrics = {name: float(v) for name, v in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return metrics


if __name__ == "__main__":
    main()
