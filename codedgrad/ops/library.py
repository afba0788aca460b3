"""What the operators share: their namespace, their checks, the way to the kernels."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import ConfigError, EnvironmentSetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LIBRARY = torch.library.Library("codedgrad", "DEF")
NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

_ALIKE = ("dtype", "shape", "device")


def register(
    schema: str,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Defines `codedgrad::NAME(...)` and its implementations."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"codedgrad::{name}", fake, lib=_LIBRARY)


def kernels(module: str) -> Any:
    """Returns `codedgrad.ops._ops` or `codedgrad.ops._ops_cuda`, by its last name.

    Raises:
        EnvironmentSetupError: it is not built.
    """
    name = f"codedgrad.ops.{module}"
    try:
        return sys.modules.get(name) or importlib.import_module(name)
    except ImportError as error:
        remedy = "CODEDGRAD_CUDA=1 " if module == "_ops_cuda" else ""
        raise EnvironmentSetupError(
            f"the kernels {name} are not built ({error}); install with "
            f"`{remedy}pip install -e .`, or use the references, "
            "such as codedgrad.ops.gram_reference"
        ) from error


def check_inputs(op: str, inputs: Sequence[torch.Tensor]) -> None:
    """Raises ConfigError unless `inputs` are tensors of one dtype, shape and device."""
    if not inputs:
        raise ConfigError(f"{op} got no input; give at least one tensor")
    first = inputs[0]
    if first.dtype not in NAMES:
        raise ConfigError(
            f"{op} got inputs of {first.dtype}; convert them to one of "
            f"{', '.join(map(str, NAMES))}"
        )
    dtype, shape, device = first.dtype, first.shape, first.device
    for i, x in enumerate(inputs):
        if x.dtype is dtype and x.shape == shape and x.device == device:
            continue
        name = next(n for n in _ALIKE if getattr(x, n) != getattr(first, n))
        raise ConfigError(
            f"{op} wants inputs of one {name}, got {getattr(first, name)} for input 0 "
            f"and {getattr(x, name)} for input {i}"
        )


def addresses(inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """Returns contiguous inputs, to be kept alive, and the addresses of their data."""
    held = [x if x.is_contiguous() else x.contiguous() for x in inputs]
    return held, [x.data_ptr() for x in held]
