"""Record the gradients of a real run: what decoders are fitted and judged on.

One process plays all shards of a synchronous run: every step's shard gradients are
kept, their mean is applied. The tasks here are small ones on data that are always at
hand (scikit-learn's sets, the sources of Python's standard library); `record` takes any
model and data.
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

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PARTITIONS = ("fresh", "fixed", "classes", "full")
_LINE = 16  # bytes of a text sample
_HELD_OUT = 512  # samples at most of the population's gradient


@dataclass(frozen=True)
class Task:
    """A model, its data, and the class (or source) of every sample."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: NDArray[Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float


def task(name: str, seed: int = 0) -> Task:
    """One of TASKS.

    Raises:
        ConfigError: no such task, or scikit-learn is missing.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}; there are {', '.join(TASKS)}")
    torch.manual_seed(seed)
    model, data, loss, lr = TASKS[name]()
    x, y, classes = data
    return Task(model, x, y, classes, loss, lr)


def task_of(place: str, seed: int = 0) -> Task:
    """A user's own model and data.

    Args:
        place: "path/to/script.py:function". The function returns (model, x, y, loss_fn)
            or (model, x, y, loss_fn, classes); loss_fn(model(x), y) is a mean.
        seed: of torch, set before the function is called.

    Raises:
        ConfigError: no such file or function, or it returns something else.
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
        found = function()
    finally:
        sys.path.pop(0)
    return _checked(found, place)


def _checked(found: Any, place: str) -> Task:
    wanted = "wanted (model, x, y, loss_fn) or (model, x, y, loss_fn, classes)"
    if not isinstance(found, (tuple, list)) or len(found) not in (4, 5):
        raise ConfigError(f"{place} returned {type(found).__name__}; {wanted}")
    model, x, y, loss = found[:4]
    if not isinstance(model, nn.Module) or not callable(loss):
        raise ConfigError(f"{place}: model is {type(model).__name__}; {wanted}")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y):
        raise ConfigError(f"{place}: x and y must be tensors of equal length; {wanted}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"{place}: the model has no parameter to train")
    classes = np.asarray(found[4] if len(found) == 5 else y)
    if len(classes) != len(x):
        raise ConfigError(f"{place}: {len(classes)} classes for {len(x)} samples")
    classes = classes.reshape(len(classes), -1)[:, 0]
    return Task(model, x, y, classes, loss, 0.05)


def halve(arrays: dict[str, Any]) -> dict[str, Any]:
    """A recording's gradients as float16.

    Raises:
        ConfigError: a gradient overflows (above 65504), or is too small: more than
            0.1 % of a step's squared length would be lost.
    """
    out = dict(arrays)
    for name in ("grads", "population"):
        if name not in arrays:
            continue
        with np.errstate(over="ignore", under="ignore"):
            half = arrays[name].astype(np.float16)
        if not np.isfinite(half).all():
            raise ConfigError(f"{name}: values above 65504 overflow; use float32")
        for step, (full, less) in enumerate(zip(arrays[name], half, strict=True)):
            lost = float(((full - less.astype(np.float64)) ** 2).sum())
            if lost > 1e-3 * float((full.astype(np.float64) ** 2).sum()):
                raise ConfigError(
                    f"{name}, step {step}: too small for float16; use float32"
                )
        out[name] = half
    return out


def _tabular(name: str) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigError(
            f"the data set {name} comes with scikit-learn: pip install scikit-learn"
        ) from None
    found = getattr(datasets, f"load_{name}")()
    x = (found.data - found.data.mean(0)) / (found.data.std(0) + 1e-3)
    if name == "diabetes":
        y = (found.target - found.target.mean()) / found.target.std()
        rank = np.argsort(np.argsort(found.target)) * 8 // len(y)
        return torch.tensor(x).float(), torch.tensor(y).float(), rank
    y = np.asarray(found.target, np.int64)
    return torch.tensor(x).float(), torch.tensor(y), y


def _text() -> tuple[Tensor, Tensor, NDArray[np.int64]]:
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


def record(
    made: Task,
    partition: str,
    *,
    shards: int = 8,
    steps: int = 300,
    batch: int = 32,
    micro: int = 1,
    seed: int = 0,
    adam: bool = False,
    lr: float | None = None,
    population: bool = False,
) -> dict[str, Any]:
    """Train and keep every shard's gradient.

    Args:
        made: model and data; the model is trained.
        partition: "fresh" (a global shuffle), "fixed" (shard j always draws from its
            part of the shuffled data), "classes" (its part of the data in order of
            class: non-IID) or "full" (fixed, and all of the part in every step).
        shards: k.
        steps: of the run.
        batch: samples of a shard in a step (not for "full").
        micro: micro-batches of a shard, recorded one by one.
        seed: of what is drawn.
        adam: AdamW instead of SGD with momentum 0.9.
        lr: learning rate; None: the task's, 3e-3 with AdamW.
        population: record the gradient of a larger held-out batch too.

    Returns:
        The arrays of a recording (see codedgrad.lab.decoders.replay).

    Raises:
        ConfigError: no such partition, too few samples, a count below 1, or gradients
            that are not finite.
    """
    if partition not in PARTITIONS:
        names = ", ".join(PARTITIONS)
        raise ConfigError(f"no partition {partition!r}; there are {names}")
    for name, value in (("shards", shards), ("steps", steps), ("micro", micro)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if partition != "full" and batch < micro:
        raise ConfigError(
            f"a batch of {batch} samples does not make {micro} micro-batches"
        )
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    order = random.permutation(len(made.x))
    held, order = np.split(order, [min(_HELD_OUT, len(order) // 4)])
    least = shards * (micro if partition == "full" else batch)
    if len(order) < least:
        raise ConfigError(
            f"{len(order)} samples are fewer than the {least} of one step; record with "
            "fewer shards or a smaller batch"
        )
    if partition == "classes":
        order = order[np.argsort(made.classes[order], kind="stable")]
    parts = np.array_split(order, shards)
    parameters = [p for p in made.model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=lr or 3e-3)
        if adam
        else torch.optim.SGD(parameters, lr=lr or made.lr, momentum=0.9)
    )
    sizes = [p.numel() for p in parameters]
    grads = np.empty((steps, shards * micro, sum(sizes)), np.float32)
    truth = np.empty((steps, sum(sizes)), np.float32)
    for step in range(steps):
        if partition == "fresh":
            drawn = np.array_split(random.permutation(order)[: shards * batch], shards)
        elif partition == "full":
            drawn = parts
        else:
            drawn = [random.permutation(p)[: min(batch, len(p))] for p in parts]
        pieces = [piece for d in drawn for piece in np.array_split(d, micro)]
        for i, piece in enumerate(pieces):
            grads[step, i] = _gradient(made, parameters, piece)
        if population:
            truth[step] = _gradient(made, parameters, held)
        if not np.isfinite(grads[step]).all():
            raise ConfigError(
                f"step {step}: a gradient with NaN or Inf; record a run that "
                "converges, e.g. with a smaller learning rate"
            )
        mean = torch.from_numpy(grads[step].mean(axis=0))
        for p, g in zip(parameters, mean.split(sizes), strict=True):
            p.grad = g.view_as(p).clone()
        optimizer.step()
    arrays = {"grads": grads, "tensor_sizes": np.asarray(sizes), "micro": micro}
    return {**arrays, "population": truth} if population else arrays


def _gradient(
    made: Task, parameters: list[nn.Parameter], samples: NDArray[np.int64]
) -> NDArray[np.float32]:
    which = torch.from_numpy(np.asarray(samples))
    loss = made.loss(made.model(made.x[which]), made.y[which])
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g).flatten()
        for p, g in zip(parameters, found, strict=True)
    ]
    return np.asarray(torch.cat(flat).numpy(), np.float32)
