"""codedgrad on GPUs: kernels, calm steps of real models, workers that share a GPU.

    bash launch/mpirun.sh -n 1 python benchmarks/bench_gpu.py --out FILE.json
    bash launch/mpirun.sh -n 4 python benchmarks/bench_gpu.py --out FILE.json

With one worker: the kernels over the card's copy bandwidth, and steps of ResNet-50
(batch 128, images of 224 x 224) and of GPT-2's shape with 124 M parameters (batch 16,
512 tokens), in bf16 autocast, against the loop that users run: one whole pass without
an exchange, and DDP. With more: steps of a perceptron of 34 M parameters, calm and with
the last worker 8 x slow. Workers beyond the number of GPUs share them, and DDP is then
on Gloo, since NCCL wants a GPU for each. The methods take turns, block by block.

`--device cpu --toy` runs all of it small, to see that it works.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import bench_overhead
import encoding
import torch
from harness import COMM, arguments, device_of, say, start_torch, synchronize, write
from shapes import Gpt, resnet
from step_methods import MICRO, Alone, Coded, Ddp, in_turns
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import codedgrad
from codedgrad import codes, ops

if TYPE_CHECKING:
    from collections.abc import Callable

INPUTS = 4  # rows of a weighted sum
SIZES_MB = (1, 40, 400)
FACTORS = (1, 8)


class Job(bench_overhead.Job):
    """One model with its data on the device."""

    def __init__(self, task: str, device: torch.device, *, toy: bool) -> None:
        """Make `resnet50`, `gpt124m` or `mlp`; small ones if `toy`."""
        torch.manual_seed(0)
        self.device, n = device, COMM.size
        self.half = device.type == "cuda" and task != "mlp"
        if task == "resnet50":
            side, own = (8, 8) if toy else (224, 128)
            model: nn.Module = resnet(4 if toy else 64, 1000)
            x = torch.randn(own * n, 3, side, side)
            x = x.to(memory_format=torch.channels_last)
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            y = torch.randint(0, 1000, (own * n,))
        elif task == "gpt124m":
            tokens, own, words = (8, 8, 64) if toy else (512, 16, 50257)
            model = Gpt(16 if toy else 768, words, tokens)
            x = y = torch.randint(0, words, (own * n, tokens))
        else:
            width, own = (32, 8) if toy else (2048, 256)
            inner = [m for _ in range(8) for m in (nn.Linear(width, width), nn.GELU())]
            model = nn.Sequential(*inner, nn.Linear(width, 10))
            x, y = torch.randn(own * n, width), torch.randint(0, 10, (own * n,))
        self.model: Any = model.to(device)
        data = TensorDataset(x.to(device), y.to(device))
        self.sampler = codedgrad.ShardSampler(data, own * n)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, foreach=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of some samples."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out = self.model(x)
            if out.dim() == 3:
                out, y = out.flatten(0, 1), y.flatten()
            return nn.functional.cross_entropy(out, y)


def seconds_of(
    action: Callable[[], Any], device: torch.device, rounds: int, repeat: int
) -> float:
    """Return the median seconds of one call; `repeat` calls follow without a wait."""
    spent = []
    for turn in range(rounds + 1):
        clock = Clock(device)
        for _ in range(repeat):
            action()
        if turn:
            spent.append(clock.seconds() / repeat)
    return statistics.median(spent)


class Clock:
    """Seconds on the device since it was made."""

    def __init__(self, device: torch.device) -> None:
        """Begin."""
        self._device = device
        synchronize(device)
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds until all work given so far is done."""
        synchronize(self._device)
        return time.perf_counter() - self._begin


def kernels(device: torch.device, *, toy: bool) -> list[dict[str, Any]]:
    """Measure the kernels over copying a tensor of the same size."""
    rows = []
    for size_mb in SIZES_MB[: 1 if toy else None]:
        for dtype in (torch.float32, torch.bfloat16):
            count = (size_mb << 20) // dtype.itemsize
            x = [torch.randn(count, device=device).to(dtype) for _ in range(INPUTS)]
            out = torch.empty_like(x[0])
            weights = [0.5 + j for j in range(INPUTS)]
            repeat = 1 if toy else max(4, 400 // size_mb)
            rounds = 2 if toy else 9

            def per_s(
                moved: int, action: Callable[[], Any], r: int = rounds, k: int = repeat
            ) -> float:
                return moved / seconds_of(action, device, r, k)

            each = count * dtype.itemsize
            copy = per_s(2 * each, lambda a=x[0], o=out: o.copy_(a))  # type: ignore[misc]
            wanted: dict[str, Any] = {
                "weighted_sum": (
                    (INPUTS + 1) * each,
                    lambda a=x, o=out, w=weights: ops.weighted_sum_out(a, w, o),
                )
            }
            inputs = encoding.gradients(count, dtype, device)
            wanted["encode"] = encoding.moved(inputs), encoding.encode(inputs)
            if dtype == torch.float32:
                wanted["gram"] = INPUTS * each, lambda a=x: ops.gram(a)
            for name, (moved, action) in wanted.items():
                share = per_s(moved, action) / copy
                row = {"op": name, "dtype": str(dtype), "mb": size_mb}
                rows.append(row | {"share_of_copy": round(share, 3)})
                say(f"{name} {dtype} {size_mb} MB: {share:.2f} of copying")
    return rows


def methods(task: str, device: torch.device, *, toy: bool) -> dict[str, Any]:
    """Return the methods to compare, each with a job of its own."""
    n = COMM.size

    def code(micro: int) -> codes.Code:
        return codes.spread(n, micro=micro) if n > 1 else codes.uncoded(n, micro=micro)

    def job() -> Any:
        return Job(task, device, toy=toy)

    return {
        "codedgrad": Coded(job(), code(MICRO), same_bits=False),
        "codedgrad_same_bits": Coded(job(), code(MICRO)),
        "codedgrad_same_bits_micro_1": Coded(job(), code(1)),
        f"ddp_{torch.distributed.get_backend()}": Ddp(job()),
        "no_exchange": Alone(job()),
    }


def steps(task: str, device: torch.device, factor: int, *, toy: bool) -> dict[str, Any]:
    """Measure a task, with the last worker `factor` x slow."""
    compared = methods(task, device, toy=toy)
    if factor > 1:
        for method in compared.values():
            method.straggle(f"slow:worker={COMM.size - 1},factor={factor}")
    seconds = in_turns(compared, 2 if toy else 7, 2 if toy else 5)
    baselines = [m for m in seconds if not m.startswith("codedgrad")]
    rows = bench_overhead.over(seconds, baselines)
    shown = "  ".join(f"{m} {r['median_ms']:.2f} ms" for m, r in rows.items())
    say(f"{task}, {COMM.size} worker(s), {factor} x: {shown}")
    return rows


def main() -> None:
    """Measure what this number of workers is for."""
    parser = arguments(str(__doc__))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    codedgrad.init()
    device = device_of(args.device)
    enough = device.type == "cuda" and torch.cuda.device_count() >= COMM.size
    start_torch(device, "nccl" if enough else "gloo")
    results: dict[str, Any] = {}
    if COMM.size == 1:
        results["kernels"] = kernels(device, toy=args.toy)
        for task in ("resnet50", "gpt124m"):
            results[task] = steps(task, device, 1, toy=args.toy)
    else:
        for factor in FACTORS:
            results[f"mlp, {factor} x"] = steps("mlp", device, factor, toy=args.toy)
    write(args.out, "bench_gpu", results)
    torch.distributed.destroy_process_group()
    codedgrad.shutdown()


if __name__ == "__main__":
    main()
