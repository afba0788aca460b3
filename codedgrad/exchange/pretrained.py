"""The weights of the learned decoder's network, as the package ships them.

benchmarks/fit_decoder.py fits them; `codedgrad.lab.decoders.network` defines the
network in numpy, and csrc/decoder/network.cpp computes it in the engine.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES = {"w1": (16, 13), "b1": (16,), "w2": (27, 16), "b2": (27,)}
_FILE = "pretrained.npz"
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile)


def weights() -> dict[str, NDArray[np.float64]]:
    """Returns the network's weights by name, with the shapes of SHAPES.

    Raises:
        ConfigError: the file is damaged, or of another version of codedgrad.
    """
    remedy = "install codedgrad again"
    try:
        with (
            resources.files("codedgrad.exchange").joinpath(_FILE).open("rb") as raw,
            np.load(raw) as file,
        ):
            found = {name: np.asarray(file[name], np.float64) for name in SHAPES}
    except _UNREADABLE as error:
        raise ConfigError(
            f"cannot read the decoder's network {_FILE}: {error}; {remedy}"
        ) from None
    for name, shape in SHAPES.items():
        if found[name].shape != shape or not np.isfinite(found[name]).all():
            raise ConfigError(
                f"the decoder's network {_FILE}: {name} must be finite {shape}, got "
                f"{found[name].shape}; {remedy}"
            )
    return found


def native() -> Any:
    """Returns the network as the engine takes it, an `_engine.Network`."""
    from codedgrad.job import _engine

    return _engine.Network(**weights())
