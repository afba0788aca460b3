"""Digests of tensors: equal bits have equal digests, on any device.

A tensor's memory is read as 64-bit words v_0, v_1, ... in blocks of B words. With odd
factors m_i, which look random, a block has the sum  s = sum_i m_i v_i  modulo 2^64, and
the digest is formed of the sums of all blocks, in order. One word that differs changes
its block's sum for certain, and other differences are missed with a probability of
about 2^-32. This is no protection against intent. It runs at the speed of memory,
on a device without a copy to the host, and it is the same on a device and on the CPU.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

_HOST_BLOCK = 1 << 15  # words, so that a block stays in the cache
_MASK = (1 << 63) - 1
_factors: dict[torch.device, Tensor] = {}


def tensor_digest(tensor: Tensor) -> str:
    """Return the digest of a tensor's type, shape and bits.

    A sparse tensor is read as its indices and values, a quantised one as its integers,
    scales and zero points. A tensor without memory (not initialised, on the device
    "meta"), and one of a type that cannot be viewed as bytes, has the digest of its
    type and shape.
    """
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised"
    tensor = tensor.detach().resolve_conj().resolve_neg()
    data = b"".join(_sums(part) for part in _dense_parts(tensor))
    shape = "nested" if tensor.is_nested else tuple(tensor.shape)
    text = f"{tensor.dtype} {shape}".encode()
    # Two checksums of the sums, which are few.
    return f"{zlib.crc32(data, zlib.crc32(text)):08x}{zlib.adler32(data):08x}"


def array_digest(array: np.ndarray) -> str:
    """Return the digest of the type, shape and bytes of an array without objects."""
    data = np.ascontiguousarray(array).tobytes()
    text = f"{array.dtype} {array.shape}".encode()
    return f"{zlib.crc32(data, zlib.crc32(text)):08x}{zlib.adler32(data):08x}"


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that hold a tensor's values."""
    if tensor.is_meta:
        return []
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return [part for row in tensor.unbind() for part in _dense_parts(row)]
    if tensor.is_mkldnn:
        return [tensor.to_dense()]
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scheme = torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())])
            return [tensor.int_repr(), scheme]
        scales, zeros = (
            tensor.q_per_channel_scales(),
            tensor.q_per_channel_zero_points(),
        )
        return [tensor.int_repr(), scales, zeros]
    return [tensor]


def _sums(tensor: Tensor) -> bytes:
    try:
        words = _words(tensor)
    except (RuntimeError, NotImplementedError, TypeError):
        return b""  # of a type or subclass whose memory cannot be viewed
    sums = _block_sums(words) if words.numel() else words
    return sums.cpu().numpy().tobytes()


def _words(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as 64-bit words, the last filled up with zeros."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    rest = -flat.numel() % 8
    if rest or flat.storage_offset() % 8 or flat.data_ptr() % 8:
        padded = flat.new_zeros(flat.numel() + rest)
        padded[: flat.numel()] = flat
        flat = padded
    return flat.view(torch.int64)


def _block_sums(words: Tensor) -> Tensor:
    factors = _factors.get(words.device)
    if factors is None:
        generator = torch.Generator().manual_seed(1)
        ours = torch.randint(_MASK, (_HOST_BLOCK,), generator=generator) | 1
        factors = _factors[words.device] = ours.to(words.device)
    whole = words.numel() // _HOST_BLOCK
    if _on_host(words):
        blocks = [
            words[i * _HOST_BLOCK : (i + 1) * _HOST_BLOCK].mul(factors).sum()
            for i in range(whole)
        ]
    else:  # 64 blocks at a time, which take 16 MiB
        table = words[: whole * _HOST_BLOCK].view(whole, _HOST_BLOCK)
        blocks = [part.mul(factors).sum(dim=1) for part in table.split(64)]
    rest = words[whole * _HOST_BLOCK :]
    if rest.numel():
        blocks.append(rest.mul(factors[: rest.numel()]).sum())
    return torch.cat([b.reshape(-1) for b in blocks])


def _on_host(words: Tensor) -> bool:
    return words.device.type == "cpu"
