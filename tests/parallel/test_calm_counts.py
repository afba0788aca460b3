"""What a calm step costs the host, counted and not timed, on ResNet-50's shape."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import codedgrad
from codedgrad import codes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from shapes import resnet

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = str(Path(codedgrad.__file__).parent)
CALLBACKS = 40  # of a step
OPERATIONS = 6  # of a bucket
# As many buckets as a wide ResNet-50 has, and one; passes of a worker in a step.
CASES = [(0.05, range(4, 13), 1), (64.0, range(1, 2), 1), (64.0, range(1, 2), 2)]
BATCH = 2  # samples of a pass


class Operations(TorchDispatchMode):
    """Counts torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Callbacks:
    """Counts calls of functions of ours that do not come from functions of ours."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        caller = frame.f_back
        if caller is None or not caller.f_code.co_filename.startswith(PACKAGE):
            self.count += 1


def criterion(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize(("bucket_mb", "expected", "passes"), CASES)
def test_a_calm_step(bucket_mb: float, expected: range, passes: int) -> None:
    torch.manual_seed(0)
    n = codedgrad.size()
    count = BATCH * passes * n
    x, y = torch.randn(8 * count, 3, 8, 8), torch.randint(0, 10, (8 * count,))
    model = resnet()
    callbacks, operations, own = Callbacks(), Operations(), Operations()
    code = codes.spread(n, micro=passes)
    words: Any = {"bucket_mb": bucket_mb, "same_bits": passes > 1}
    with codedgrad.CodedGradient(model, code, **words) as coded:
        sampler = codedgrad.ShardSampler((x, y), count)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        buckets = len(coded._payload.layout.bucket_starts) - 1

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return criterion(model, x, y)

        for index, shards in enumerate(coded.steps(sampler)):
            before = callbacks.count, operations.count
            if index in (5, 6, 7):  # no step in which values are compared
                sys.setprofile(callbacks)
                try:
                    coded.backward(loss, shards)
                finally:
                    sys.setprofile(None)
            elif index == 3:
                with operations:
                    coded.backward(loss, shards)
            else:
                coded.backward(loss, shards)
            if coded.report.redundant_passes or coded.report.abandoned:
                callbacks.count, operations.count = before  # it was not calm
            optimizer.step()
            optimizer.zero_grad()
    # Reading the own shard is an operation for each of its tensors.
    with own:
        for _ in range(passes):
            criterion(model, *(t[:BATCH].clone() for t in (x, y))).backward()
    assert buckets in expected
    assert callbacks.count <= 3 * CALLBACKS
    assert operations.count - own.count <= OPERATIONS * buckets
