"""Gigabytes of addresses on a few megabytes of memory, for messages that are huge."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import numpy as np

BLOCK = 2 << 20
_FIXED = 0x10  # MAP_FIXED of Linux, which the module mmap does not have
_NO_ACCESS = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3]
_libc.mmap.argtypes += [ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _map(place: int | None, size: int, access: int, kind: int, file: int) -> int:
    found = _libc.mmap(place, size, access, kind, file, 0)
    if found in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(found)


def folded(size: int) -> np.ndarray:
    """Returns `size` bytes of zeros, of which all but the last block are one memory.

    What is written at i is there at i + BLOCK, too, except in the last block (2 to 4
    MiB), which has memory of its own.
    """
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    access = mmap.PROT_READ | mmap.PROT_WRITE
    start = _map(None, size + BLOCK, _NO_ACCESS, anonymous, -1)
    file = os.memfd_create("folded")
    os.ftruncate(file, BLOCK)
    shared = mmap.MAP_SHARED | mmap.MAP_POPULATE | _FIXED
    repeats = max(0, size // BLOCK - 1)
    for i in range(repeats):
        _map(start + i * BLOCK, BLOCK, access, shared, file)
    os.close(file)
    rest = start + repeats * BLOCK
    _map(rest, start + size + BLOCK - rest, access, anonymous | _FIXED, -1)
    memory = (ctypes.c_ubyte * size).from_address(start)
    weakref.finalize(memory, _libc.munmap, start, size + BLOCK)
    return np.frombuffer(memory, np.uint8)
