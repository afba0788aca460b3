"""Linear combinations of tensors in one pass, which is how rows are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from codedgrad.errors import ConfigError
from codedgrad.ops.library import NAMES, addresses, check_inputs, kernels, register

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIRES = (None, torch.float32, torch.bfloat16, torch.float16)


def weighted_sum(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns round(sum_j weights[j] * inputs[j]), in one pass over memory.

    Weights, products and sums are fp32 (fp64 for fp64 inputs), in the order of j and
    without fused multiply-add. So the bits depend on the arguments alone: the CPU, any
    number of threads, CUDA and `weighted_sum_reference` agree. Inputs of weight 0 are
    not read, so a NaN in them does not matter. No gradient flows through the sum.

    Args:
        inputs: k >= 1 tensors of one shape, device and dtype: fp32, bf16, fp16 or fp64.
        weights: k numbers.
        out_dtype: type of the result: fp32, bf16 or fp16 (fp64 for fp64 inputs). None:
            the inputs' type.
        wire_dtype: the sum is rounded to this type first (bf16 or fp16, to the nearest,
            ties to even; not for fp64), so that a sender keeps what others receive.

    Raises:
        ConfigError: the arguments do not fit each other.
        EnvironmentSetupError: the kernels of that device are not built.
    """
    if not inputs:  # no device to dispatch on
        check_inputs("weighted_sum", inputs)
    out: torch.Tensor = torch.ops.codedgrad.weighted_sum(
        inputs, weights, out_dtype, wire_dtype
    )
    return out


def weighted_sum_out(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.Tensor,
    wire_dtype: torch.dtype | None = None,
) -> None:
    """Writes what `weighted_sum` returns to `out`.

    `out` is contiguous and has the inputs' shape. It may be one of the inputs, but must
    not overlap them otherwise.

    Raises:
        ConfigError: the arguments do not fit each other.
    """
    if not inputs:
        check_inputs("weighted_sum", inputs)
    torch.ops.codedgrad.weighted_sum_out(inputs, weights, out, wire_dtype)


def weighted_sum_reference(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns the same bits as `weighted_sum` by torch expressions, which is slow."""
    out_dtype = _check(inputs, weights, out_dtype, wire_dtype)
    wide = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    total: torch.Tensor | None = None
    for x, weight in zip(inputs, weights, strict=True):
        if weight != 0:
            term = x.detach().to(wide) * weight
            total = term if total is None else total + term
    if total is None:
        total = torch.zeros_like(inputs[0], dtype=wide)
    if wire_dtype is not None:
        total = total.to(wire_dtype).to(wide)
    return total.to(out_dtype).contiguous()


def _check(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None,
    wire_dtype: torch.dtype | None,
) -> torch.dtype:
    check_inputs("weighted_sum", inputs)
    if len(weights) != len(inputs):
        raise ConfigError(
            f"weighted_sum got {len(weights)} weights for {len(inputs)} inputs; give "
            "one for every input"
        )
    dtype = inputs[0].dtype
    out_dtype = out_dtype or dtype
    double = dtype == torch.float64
    if out_dtype not in NAMES or (out_dtype == torch.float64) != double:
        raise ConfigError(
            f"weighted_sum cannot store {dtype} as {out_dtype}; out_dtype is "
            + ("float64" if double else "float32, bfloat16 or float16")
        )
    if wire_dtype not in _WIRES or (double and wire_dtype is not None):
        raise ConfigError(
            f"weighted_sum cannot round {dtype} to {wire_dtype} on the way; wire_dtype "
            "is None" + ("" if double else ", bfloat16 or float16")
        )
    return out_dtype


def _check_out(inputs: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    first = inputs[0]
    fits = out.shape == first.shape and out.device == first.device
    if not fits or not out.is_contiguous():
        raise ConfigError(
            f"out must be contiguous, {list(first.shape)} on {first.device}, got "
            f"{list(out.shape)}, strides {out.stride()}, on {out.device}"
        )


def _kernel_arguments(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.Tensor,
    wire_dtype: torch.dtype | None,
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Returns the tensors to keep alive, and what the kernels of all devices take."""
    _check(inputs, weights, out.dtype, wire_dtype)
    _check_out(inputs, out)
    held, places = addresses(inputs)
    begin, count = out.data_ptr(), out.numel()
    end, size = begin + count * out.element_size(), count * held[0].element_size()
    for i, place in enumerate(places):
        same = place == begin and held[i].dtype is out.dtype
        if place < end and begin < place + size and not same:
            raise ConfigError(
                f"out overlaps input {i} without being it; give memory of its own"
            )
    return held, {
        "weights": list(weights),
        "inputs": places,
        "type": NAMES[inputs[0].dtype],
        "out": begin,
        "out_type": NAMES[out.dtype],
        "count": count,
        "wire": "" if wire_dtype in (None, torch.float32) else NAMES[wire_dtype],
    }


def _cpu_out(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.Tensor,
    wire_dtype: torch.dtype | None = None,
) -> None:
    held, arguments = _kernel_arguments(inputs, weights, out, wire_dtype)
    kernels("_ops").weighted_sum(**arguments, threads=torch.get_num_threads())
    del held  # it is alive until here


def _cuda_out(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.Tensor,
    wire_dtype: torch.dtype | None = None,
) -> None:
    held, arguments = _kernel_arguments(inputs, weights, out, wire_dtype)
    with torch.cuda.device(out.device):
        stream = torch.cuda.current_stream().cuda_stream
        kernels("_ops_cuda").weighted_sum(**arguments, stream=stream)
    # The kernel may not have run yet: the allocator keeps freed memory in the stream's
    # order.
    del held


def _fake_out(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out: torch.Tensor,
    wire_dtype: torch.dtype | None = None,
) -> None:
    _check(inputs, weights, out.dtype, wire_dtype)
    _check_out(inputs, out)


def _fake(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out_dtype = _check(inputs, weights, out_dtype, wire_dtype)
    return inputs[0].new_empty(inputs[0].shape, dtype=out_dtype)


def _cpu(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out = _fake(inputs, weights, out_dtype, wire_dtype)
    _cpu_out(inputs, weights, out, wire_dtype)
    return out


def _cuda(
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    out_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    out = _fake(inputs, weights, out_dtype, wire_dtype)
    _cuda_out(inputs, weights, out, wire_dtype)
    return out


register(
    "weighted_sum(Tensor[] inputs, float[] weights, ScalarType? out_dtype=None, "
    "ScalarType? wire_dtype=None) -> Tensor",
    _cpu,
    _cuda,
    _fake,
)
register(
    "weighted_sum_out(Tensor[] inputs, float[] weights, Tensor(a!) out, "
    "ScalarType? wire_dtype=None) -> ()",
    _cpu_out,
    _cuda_out,
    _fake_out,
)
