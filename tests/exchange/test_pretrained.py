"""The network that the package ships: one file for the engine and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codedgrad import ConfigError
from codedgrad.exchange import pretrained
from codedgrad.lab.decoders import network


def test_the_engine_and_the_reference_have_the_same_weights() -> None:
    reference, weights = network.Network.pretrained(), pretrained.weights()
    assert pretrained.SHAPES == network.SHAPES
    for name, value in weights.items():
        np.testing.assert_array_equal(value, getattr(reference, name))
    pretrained.native()


@pytest.mark.parametrize("what", ["no file", "no archive", "no b1", "shape", "nan"])
def test_a_damaged_file_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {n: np.zeros(s) for n, s in pretrained.SHAPES.items()}
    place = tmp_path / "pretrained.npz"
    if what == "no b1":
        del arrays["b1"]
    if what == "shape":
        arrays["w2"] = arrays["w2"][1:]
    if what == "nan":
        arrays["b2"][3] = np.nan
    if what == "no archive":
        place.write_bytes(b"nothing")
    elif what != "no file":
        np.savez(place, **arrays)
    monkeypatch.setattr(pretrained.resources, "files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="install codedgrad again"):
        pretrained.weights()
