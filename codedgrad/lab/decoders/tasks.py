"""The models and data of recordings: small tasks that are always at hand, or a user's.

The data are scikit-learn's sets and the sources of Python's standard library, so that
nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codedgrad.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_LINE = 16  # bytes of a text sample


@dataclass(frozen=True)
class Task:
    """A model and its data.

    Attributes:
        model: the model, with its first weights.
        x, y: inputs and targets of all samples.
        classes: [samples], the class or source of every sample.
        loss: the loss, a mean over the samples, of the model's output and y.
        lr: learning rate of SGD with momentum.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: NDArray[Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float


def task(name: str, seed: int = 0) -> Task:
    """Make one of TASKS; `seed` decides the model's first weights.

    Raises:
        ConfigError: there is no such task, or scikit-learn is missing.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}; there are {', '.join(TASKS)}")
    torch.manual_seed(seed)
    model, data, loss, lr = TASKS[name]()
    x, y, classes = data
    return Task(model=model, x=x, y=y, classes=classes, loss=loss, lr=lr)


def task_of(place: str, seed: int = 0) -> Task:
    """Make a task of a user's own model and data.

    Args:
        place: "path/to/script.py:function". The function returns (model, x, y, loss_fn)
            or (model, x, y, loss_fn, classes); loss_fn(model(x), y) is a mean.
        seed: torch's seed, which is set before the function is called.

    Raises:
        ConfigError: there is no such file or function, or it returns something else.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"there is no script {file}; wanted FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python script; wanted FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        torch.manual_seed(seed)
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError(f"{file} has no function {name!r}")
        returned = function()
    finally:
        sys.path.pop(0)
    return _checked(returned, place)


def _checked(returned: Any, place: str) -> Task:
    wanted = "wanted (model, x, y, loss_fn) or (model, x, y, loss_fn, classes)"
    if not isinstance(returned, (tuple, list)) or len(returned) not in (4, 5):
        raise ConfigError(f"{place} returned {type(returned).__name__}; {wanted}")
    model, x, y, loss = returned[:4]
    if not isinstance(model, nn.Module) or not callable(loss):
        raise ConfigError(f"{place}: model is {type(model).__name__}; {wanted}")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y):
        raise ConfigError(f"{place}: x and y must be tensors of equal length; {wanted}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"{place}: the model has no parameter to train")
    classes = np.asarray(returned[4] if len(returned) == 5 else y)
    if len(classes) != len(x):
        raise ConfigError(f"{place}: {len(classes)} classes for {len(x)} samples")
    classes = classes.reshape(len(classes), -1)[:, 0]
    return Task(model=model, x=x, y=y, classes=classes, loss=loss, lr=0.05)


def _tabular(name: str) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Return x, y and classes of one of scikit-learn's sets, normalised."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_extra("examples", error) from None
    data = getattr(datasets, f"load_{name}")()
    x = (data.data - data.data.mean(0)) / (data.data.std(0) + 1e-3)
    if name == "diabetes":
        y = (data.target - data.target.mean()) / data.target.std()
        rank = np.argsort(np.argsort(data.target)) * 8 // len(y)
        return torch.tensor(x).float(), torch.tensor(y).float(), rank
    y = np.asarray(data.target, np.int64)
    return torch.tensor(x).float(), torch.tensor(y), y


def _text() -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Return lines of bytes, the bytes that follow, and the file of every line."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    xs, ys, classes = [], [], []
    for i, file in enumerate(sorted(folder.glob("*.py"))[:80]):
        raw = np.frombuffer(file.read_bytes(), np.uint8).astype(np.int64)
        data = torch.from_numpy(np.minimum(raw, 127))
        n = min((len(data) - 1) // _LINE, 60)
        xs.append(data[: n * _LINE].view(n, _LINE))
        ys.append(data[1 : n * _LINE + 1].view(n, _LINE))
        classes += [i] * n
    if sum(map(len, xs)) < 512:
        raise ConfigError(f"{folder} holds too few .py files for --task text")
    return torch.cat(xs), torch.cat(ys), np.asarray(classes)


class _Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x.view(-1, 1, 8, 8)))
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        result: Tensor = self.out(x.flatten(1))
        return result


class _Recurrent(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.token = nn.Embedding(128, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.cell(self.token(x))[0])
        return result


class _Attention(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.token = nn.Embedding(128, width)
        self.place = nn.Parameter(0.02 * torch.randn(_LINE, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        later = torch.triu(torch.full((_LINE, _LINE), -1e9), 1)
        result: Tensor = self.out(self.block(self.token(x) + self.place, later))
        return result


def _mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def _next_byte(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def _one_hot(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, F.one_hot(y, out.shape[1]).float())


def _square(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out[:, 0], y)


# Each makes the model, (x, y, classes), the loss and the learning rate.
TASKS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: (
        nn.Linear(64, 10),
        _tabular("digits"),
        F.cross_entropy,
        0.3,
    ),
    "mlp": lambda: (
        _mlp(64, 48, 32, 10),
        _tabular("digits"),
        F.cross_entropy,
        0.05,
    ),
    "cnn": lambda: (_Cnn(), _tabular("digits"), F.cross_entropy, 0.05),
    "cancer": lambda: (
        _mlp(30, 32, 2, act=nn.GELU),
        _tabular("breast_cancer"),
        F.cross_entropy,
        0.05,
    ),
    "diabetes": lambda: (
        _mlp(10, 32, 32, 1, act=nn.Tanh),
        _tabular("diabetes"),
        _square,
        0.02,
    ),
    "wine": lambda: (
        _mlp(13, 40, 3, act=nn.SiLU),
        _tabular("wine"),
        F.cross_entropy,
        0.05,
    ),
    "text": lambda: (_Recurrent(), _text(), _next_byte, 0.5),
    "attention": lambda: (_Attention(), _text(), _next_byte, 0.2),
    "linear": lambda: (nn.Linear(64, 10), _tabular("digits"), _one_hot, 0.1),
}
