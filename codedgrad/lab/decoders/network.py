"""The small network of the learned decoder: from inner products to coefficients.

It sees how wrong each candidate (codedgrad.lab.decoders.candidates) was on recent labels
and is on this step's left-out problems, and a context of the step, and chooses

    c = sum_k w_k c_k,   w = softmax_k(-sum_f a_f F_kf + b_k),   (a, b) = net(context)

with a_f >= 0, |b_k| <= 2 (it fades as labels come), and the predicted squared error

    log e = log(u) + t l_left + (1 - t) l_past + s,    (t, s) = net(context)

u: see codedgrad.lab.decoders.predictor; l: log errors relative to it, of left-out
problems and of past labels. All inputs are logarithms of ratios: no scale, no size.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from codedgrad.errors import ConfigError
from codedgrad.lab.decoders.candidates import K

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FEATURES = 6  # of a candidate: slow, fast, left-out; each of the tile and pooled
CONTEXT = 13
HIDDEN = 16
OUTPUTS = FEATURES + K + 2
SHAPES = {
    "w1": (HIDDEN, CONTEXT),
    "b1": (HIDDEN,),
    "w2": (OUTPUTS, HIDDEN),
    "b2": (OUTPUTS,),
}
FARTHEST = 6.0  # of a log error from the best candidate's
STRONGEST = 2.0  # prior of a candidate
_FLOOR = 1e-12
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile)


@dataclass(frozen=True)
class Network:
    """Weights; float64 arrays of SHAPES.

    Raises:
        ConfigError: a weight is missing, has another shape or is not finite.
    """

    w1: Array
    b1: Array
    w2: Array
    b2: Array

    def __post_init__(self) -> None:
        """Check."""
        for name, shape in SHAPES.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise ConfigError(
                    f"decoder network: {name} must be finite {shape}, got "
                    f"{value.shape}; train it with this version of codedgrad"
                )

    @classmethod
    def of(cls, arrays: Any) -> Network:
        """From a mapping of arrays, e.g. an open .npz archive."""
        try:
            return cls(**{n: np.asarray(arrays[n], np.float64) for n in SHAPES})
        except KeyError as error:
            raise ConfigError(
                f"decoder network: there is no {error} in it; wanted {list(SHAPES)}"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """From an .npz archive.

        Raises:
            ConfigError: no such file, or not one of these.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw) as file:
                return cls.of(file)
        except ConfigError:
            raise
        except _UNREADABLE as error:
            raise ConfigError(f"cannot read decoder network {path}: {error}") from None

    @classmethod
    def pretrained(cls) -> Network:
        """What the package ships, fitted by benchmarks/fit_decoder.py."""
        shipped = resources.files("codedgrad.exchange").joinpath("pretrained.npz")
        with resources.as_file(shipped) as path:
            return cls.load(path)

    def __call__(
        self, features: Array, context: Array, labels: float
    ) -> tuple[Array, Array, Array]:
        """Choose.

        Args:
            features: [T, K, FEATURES], from `relative`.
            context: [T, CONTEXT].
            labels: labels learned from so far.

        Returns:
            w [T, K], t [T] in (0, 1), s [T] in (-2, 2).
        """
        out = np.tanh(context @ self.w1.T + self.b1) @ self.w2.T + self.b2
        a = np.logaddexp(0.0, out[:, :FEATURES])
        b = STRONGEST * np.tanh(out[:, FEATURES:-2]) * 10.0 / (10.0 + labels)
        score = b - (features * a[:, None]).sum(-1)
        w = np.exp(score - score.max(axis=1, keepdims=True))
        t = 1.0 / (1.0 + np.exp(-out[:, -2]))
        return w / w.sum(axis=1, keepdims=True), t, 2.0 * np.tanh(out[:, -1])


def relative(errors: Array) -> Array:
    """log(e_k / min_k e), at most FARTHEST, of errors [..., K] >= 0."""
    logs = np.log(errors + _FLOOR)
    out: Array = np.minimum(logs - logs.min(axis=-1, keepdims=True), FARTHEST)
    return out
