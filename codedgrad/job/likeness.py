"""Do all workers compute with the same hardware, and with the same settings of torch?

The same micro-batch gives the same bits only where both are alike. Settings are the
script's, so they are compared like its arguments, and differing ones are an error. A
cluster may have unlike machines for good reason. Everything but the bits is right
there, so that is a warning.

[Note: unlike hardware] All workers use the same decoded sum even then, so they have the
same parameters in every step, as long as their optimizers round alike. The bits of that
sum depend on who computed a micro-batch: where a back-up stood in for a late worker,
the gradient is another worker's, equal to rounding. Two runs then differ as runs on
unlike machines do.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from codedgrad.job.runtime import Runtime

log = logging.getLogger("codedgrad")


def settings() -> list[tuple[str, str]]:
    """Return the settings of torch that change what a pass computes, by name."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return [
        ("torch", torch.__version__),
        ("torch's default dtype", str(torch.get_default_dtype())),
        ("torch's float32 matmul precision", torch.get_float32_matmul_precision()),
        ("torch's use of TF32 in matmul", str(cuda.matmul.allow_tf32)),
        ("torch's use of TF32 in cuDNN", str(cudnn.allow_tf32)),
        ("cuDNN", f"enabled {cudnn.enabled}, deterministic {cudnn.deterministic}"),
        (
            "torch's deterministic algorithms",
            str(torch.are_deterministic_algorithms_enabled()),
        ),
    ]


def hardware(device: torch.device) -> str:
    """Describe what of this machine the bits of a pass depend on."""
    parts = [
        f"{torch.get_num_threads()} threads",
        f"CPU capability {torch.backends.cpu.get_cpu_capability()}",
        f"Python {sys.version_info.major}.{sys.version_info.minor}",
    ]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    elif device.type != "cpu":
        parts.append(device.type)
    return ", ".join(parts)


def compare_hardware(job: Runtime, device: torch.device) -> None:
    """Note where workers are unlike, and warn on worker 0. Collective.

    Args:
        job: all workers.
        device: where this worker's model is.
    """
    mine = hardware(device)
    texts = [b.decode() for b in job.gather(mine.encode(), "to compare the hardware")]
    kinds: dict[str, list[int]] = {}
    for worker, text in enumerate(texts):
        kinds.setdefault(text, []).append(worker)
    job.unlike = len(kinds) > 1
    if len(kinds) == 1 or job.rank != 0:
        return
    shown = "; ".join(f"{text}: {job.unit}(s) {w}" for text, w in kinds.items())
    log.warning(
        "the workers are unlike (%s). All have the same parameters nevertheless, but "
        "the bits of a step can depend on which worker computed a micro-batch, that "
        "is, on who was late",
        shown,
    )
