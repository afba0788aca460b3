"""What launch/train.py trains. Data come from packages or a local folder."""

from __future__ import annotations

import pickle
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable

TASKS = ("digits", "text", "cifar10")
_TEXT_BYTES = 4 << 20
_CONTEXT = 128


@dataclass
class Task:
    """A model and its data; `loss(model(x), y)` is a mean over the samples."""

    model: nn.Module
    train: TensorDataset
    test: TensorDataset
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    augment: Callable[[Tensor], Tensor] = lambda x: x
    batch_size: int = 256
    lr: float = 3e-3
    epochs: int = 20

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of right predictions on the test data."""
        right = total = 0
        self.model.eval()
        device = next(self.model.parameters()).device
        for i in range(0, len(self.test), 128):
            x, y = (t.to(device) for t in self.test[i : i + 128])
            right += int((self.model(x).argmax(-1) == y).sum())
            total += y.numel()
        self.model.train()
        return right / total


def make(name: str, data: Path | None = None, seed: int = 0) -> Task:
    """Build a task, the same one on every worker.

    Raises:
        SystemExit: there is no such task, or its data are not where they should be.
    """
    torch.manual_seed(seed)
    if name == "digits":
        return _digits()
    if name == "text":
        return _text()
    if name == "cifar10":
        return _cifar10(data)
    raise SystemExit(f"no task {name!r}; there are {', '.join(TASKS)}")


def _digits() -> Task:
    """Make a task of 1,797 handwritten digits, which come with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("--task digits needs `pip install scikit-learn`") from None
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Task(
        models.digits_cnn(),
        TensorDataset(x[train], y[train]),
        TensorDataset(x[test], y[test]),
    )


def _text() -> Task:
    """Make a task of the sources of Python's standard library, byte by byte.

    Every tenth sample is for the test.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"\n".join(f.read_bytes() for f in sorted(folder.glob("*.py")))[:_TEXT_BYTES]
    if len(text) < 100 * _CONTEXT:
        raise SystemExit(
            f"{folder} holds {len(text)} bytes of .py files, too few; this Python has "
            f"no sources of its standard library: try --task digits"
        )
    count = (len(text) - 1) // _CONTEXT
    data = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    x = data[: count * _CONTEXT].view(count, _CONTEXT)
    y = data[1 : count * _CONTEXT + 1].view(count, _CONTEXT)
    test = torch.arange(count) % 10 == 9
    return Task(
        models.ByteGPT(context=_CONTEXT),
        TensorDataset(x[~test], y[~test]),
        TensorDataset(x[test][:512], y[test][:512]),
        loss=lambda logits, want: F.cross_entropy(logits.flatten(0, 1), want.flatten()),
        batch_size=64,
        lr=1e-3,
        epochs=1,
    )


def _cifar10(data: Path | None) -> Task:
    """Make a task of CIFAR-10's "python version", as torchvision or tar unpacks it."""
    if data is None:
        raise SystemExit("--task cifar10 needs --data DIR, see launch/README.md")
    folder = data / "cifar-10-batches-py"
    folder = folder if folder.is_dir() else data
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if missing := [n for n in names if not (folder / n).is_file()]:
        raise SystemExit(
            f"{folder} lacks {', '.join(missing)}; wanted the files of "
            f"cifar-10-python.tar.gz, unpacked"
        )
    batches = [_cifar_batch(folder / n) for n in names]
    x = torch.cat([b[0] for b in batches[:5]])
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Task(
        models.resnet18(),
        TensorDataset((x - mean) / std, torch.cat([b[1] for b in batches[:5]])),
        TensorDataset((batches[5][0] - mean) / std, batches[5][1]),
        augment=_flip_and_shift,
        batch_size=128,
        epochs=30,
    )


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        batch = _ArraysOnly(file, encoding="bytes").load()
    x = torch.from_numpy(np.asarray(batch[b"data"])).view(-1, 3, 32, 32).float() / 255
    return x, torch.tensor(batch[b"labels"], dtype=torch.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays only, because another pickle might run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a CIFAR-10 file may not hold {module}.{name}")


def _flip_and_shift(x: Tensor) -> Tensor:
    """Flip and shift a micro-batch by up to 4 pixels, as torch's RNG says."""
    if torch.rand(()) < 0.5:
        x = x.flip(-1)
    dy, dx = torch.randint(0, 9, (2,)).tolist()
    return F.pad(x, (4, 4, 4, 4))[..., dy : dy + 32, dx : dx + 32]
