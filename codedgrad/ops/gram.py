"""All inner products of a few tensors in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from codedgrad.ops.library import NAMES, addresses, check_inputs, kernels, register

if TYPE_CHECKING:
    from collections.abc import Sequence


def gram(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns G[i, j] = <inputs[i], inputs[j]> over all elements, in one pass.

    Products of fp64 are added in fp64. All others are added in fp32, at most 64 of
    them, and those sums in fp64: |error| <= 64 * 2^-24 * <|inputs[i]|, |inputs[j]|>,
    and a product above 3.4e38 is infinite. The order of additions depends on the number
    of elements alone, so any number of threads gives the same bits. (A GPU has an order
    of its own.)

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
    """Returns what `gram` does, all in fp64, by a torch expression, which is slow."""
    check_inputs("gram", inputs)
    x = torch.stack([t.detach().reshape(-1).double() for t in inputs])
    return x @ x.T


def _fake(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    check_inputs("gram", inputs)
    return inputs[0].new_empty((len(inputs), len(inputs)), dtype=torch.float64)


def _cpu(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    out = _fake(inputs)
    held, places = addresses(inputs)
    kernels("_ops").gram(
        inputs=places,
        type=NAMES[inputs[0].dtype],
        count=held[0].numel(),
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out


def _cuda(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    out, module = _fake(inputs), kernels("_ops_cuda")
    with torch.cuda.device(out.device):
        held, places = addresses(inputs)
        count = held[0].numel()
        # It is freed before the kernel has run: the allocator keeps freed memory in
        # the stream's order.
        workspace = out.new_empty(module.gram_workspace(count))
        module.gram(
            inputs=places,
            type=NAMES[inputs[0].dtype],
            count=count,
            out=out.data_ptr(),
            workspace=workspace.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return out


register("gram(Tensor[] inputs) -> Tensor", _cpu, _cuda, _fake)
