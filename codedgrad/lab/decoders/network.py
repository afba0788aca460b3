"""The small network of the learned decoder: from inner products to coefficients.

It sees how wrong each candidate (see `candidates`) was on recent labels and is on this
step's left-out problems, and a context of the step. From these it chooses

    c = sum_k w_k c_k,   w = softmax_k(-sum_f a_f F_kf + b_k),   (a, b) = net(context)

with a_f >= 0 and |b_k| <= 2 (b fades as labels come), and the predicted squared error

    log e = log(u) + t l_left + (1 - t) l_past + s,    (t, s) = net(context)

with u as in `predictor`, and l_left and l_past the log errors, relative to u, of
left-out problems and of past labels. All inputs are logarithms of ratios, so neither
scale nor size of the model matters.
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

FEATURES = 6  # of a candidate: slow, fast and left-out errors, by tile and pooled
CONTEXT = 13  # inputs of the network
HIDDEN = 16
OUTPUTS = FEATURES + K + 2
SHAPES = {
    "w1": (HIDDEN, CONTEXT),
    "b1": (HIDDEN,),
    "w2": (OUTPUTS, HIDDEN),
    "b2": (OUTPUTS,),
}
FARTHEST = 6.0  # a log error counts as at most so far from the best candidate's
STRONGEST = 2.0  # limit of |b_k|, the prior of a candidate
_FLOOR = 1e-12
_UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile)


@dataclass(frozen=True)
class Network:
    """The weights, as float64 arrays of SHAPES.

    Raises:
        ConfigError: a weight is missing, has another shape or is not finite.
    """

    w1: Array
    b1: Array
    w2: Array
    b2: Array

    def __post_init__(self) -> None:
        """Check the shapes."""
        for name, shape in SHAPES.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise ConfigError(
                    f"decoder network: {name} must be finite {shape}, got "
                    f"{value.shape}; train it with this version of codedgrad"
                )

    @classmethod
    def of(cls, arrays: Any) -> Network:
        """Take the weights from a mapping of arrays, e.g. an open .npz archive."""
        try:
            return cls(**{n: np.asarray(arrays[n], np.float64) for n in SHAPES})
        except KeyError as error:
            raise ConfigError(
                f"decoder network: there is no {error} in it; wanted {list(SHAPES)}"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """Read the weights from an .npz archive.

        Raises:
            ConfigError: there is no such file, or it is not such an archive.
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
        """Read the package's own network; benchmarks/fit_decoder.py has fitted it."""
        shipped = resources.files("codedgrad.exchange").joinpath("pretrained.npz")
        with resources.as_file(shipped) as path:
            return cls.load(path)

    def __call__(
        self, features: Array, context: Array, labels: float
    ) -> tuple[Array, Array, Array]:
        """Choose the candidates' weights and the predictor's mixing.

        Args:
            features: F [T, K, FEATURES], from `relative`.
            context: [T, CONTEXT].
            labels: number of labels that were learned so far.

        Returns:
            w [T, K], t [T] in (0, 1), and s [T] in (-2, 2).
        """
        out = np.tanh(context @ self.w1.T + self.b1) @ self.w2.T + self.b2
        a = np.logaddexp(0.0, out[:, :FEATURES])
        b = STRONGEST * np.tanh(out[:, FEATURES:-2]) * 10.0 / (10.0 + labels)
        score = b - (features * a[:, None]).sum(-1)
        w = np.exp(score - score.max(axis=1, keepdims=True))
        t = 1.0 / (1.0 + np.exp(-out[:, -2]))
        return w / w.sum(axis=1, keepdims=True), t, 2.0 * np.tanh(out[:, -1])


def relative(errors: Array) -> Array:
    """Return log(e_k / min_k e), at most FARTHEST, for errors e [..., K] >= 0."""
    logs = np.log(errors + _FLOOR)
    out: Array = np.minimum(logs - logs.min(axis=-1, keepdims=True), FARTHEST)
    return out
