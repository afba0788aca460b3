"""What the random generators of the process are at, and how to put them back.

Reading all of them takes about 10 us. Those of numpy are read from the memory of its
generator, since asking for its state takes 30 us.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand

_MT19937_BYTES = 624 * 4 + 4  # its words, and the place in them


class Generators:
    """The states at one moment of torch, numpy (the global one) and `random`."""

    def __init__(self) -> None:
        """Read them."""
        self._torch = torch.default_generator.get_state()
        self._numpy = _numpy_state(mtrand.get_bit_generator())
        self._python = random.getstate()
        initialised = torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if initialised else []

    def moved(self) -> bool:
        """Return whether numbers were drawn since, by whatever thread."""
        now = Generators()
        return (
            now._python != self._python
            or now._numpy != self._numpy
            or not torch.equal(now._torch, self._torch)
            or len(now._cuda) != len(self._cuda)
            or not all(map(torch.equal, now._cuda, self._cuda))
        )

    def put_back(self) -> None:
        """Let them draw again what they have drawn since."""
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        generator = mtrand.get_bit_generator()
        if isinstance(self._numpy, bytes):
            place = generator.ctypes.state_address
            ctypes.memmove(place, self._numpy, _MT19937_BYTES)
        else:
            generator.state = self._numpy[1]
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _numpy_state(generator: Any) -> bytes | tuple[str, Any]:
    if type(generator) is np.random.MT19937:
        return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    # Dictionaries of arrays cannot be compared, so their texts are.
    state = generator.state
    return repr(state), state
