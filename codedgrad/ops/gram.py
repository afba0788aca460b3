"""All inner products of a few tensors in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from codedgrad.ops.library import NAMES, addresses, check_inputs, kernels, register

if TYPE_CHECKING:
    from collections.abc import Sequence


def gram(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """G[i, j] = <inputs[i], inputs[j]> over all elements, in one pass over memory.

    fp64 is added in fp64, all else in fp32 up to 64 products at a time and those sums
    in fp64: |error| <= 64 * 2^-24 * <|inputs[i]|, |inputs[j]|>, and a product above
    3.4e38 is infinite. The order of additions depends on the number of elements alone:
    the same bits for any number of threads. (A GPU has an order of its own.)

    Args:
        inputs: k >= 1 tensors of one shape, device and dtype: fp32, bf16, fp16 or fp64.

    Returns:
        fp64 [k, k] on the inputs' device, exactly symmetric.

    Raises:
        ConfigError: the inputs do not fit each other.
        EnvironmentSetupError: the kernels of that device are not built.
    """
    if not inputs:  # no device to dispatch on
        check_inputs("gram", inputs)
    out: torch.Tensor = torch.ops.codedgrad.gram(inputs)
    return out


def gram_reference(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """As `gram`, all in fp64, as a torch expression; slow."""
    check_inputs("gram", inputs)
    x = torch.stack([t.detach().reshape(-1).double() for t in inputs])
    return x @ x.T


def _fake(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    check_inputs("gram", inputs)
    return inputs[0].new_empty((len(inputs), len(inputs)), dtype=torch.float64)


def _run(
    module: str, inputs: Sequence[torch.Tensor], out: torch.Tensor, how: int
) -> None:
    """`how`: threads of the CPU, stream of CUDA."""
    held, where = addresses(inputs)
    count = held[0].numel()
    name = NAMES[inputs[0].dtype]
    if module == "_ops":
        kernels(module).gram(where, name, count, out.data_ptr(), how)
        return
    size = kernels(module).gram_workspace(count)
    workspace = out.new_empty(size)
    # Freed before the kernel has run: the allocator keeps it in the stream's order.
    kernels(module).gram(where, name, count, out.data_ptr(), workspace.data_ptr(), how)


def _cpu(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    out = _fake(inputs)
    _run("_ops", inputs, out, torch.get_num_threads())
    return out


def _cuda(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    out = _fake(inputs)
    with torch.cuda.device(out.device):
        _run("_ops_cuda", inputs, out, torch.cuda.current_stream().cuda_stream)
    return out


register("gram(Tensor[] inputs) -> Tensor", _cpu, _cuda, _fake)
