"""Queries mixed after some stages of the model, by a learned encoder and decoder.

The idea of Coded-InvNet (Dinh and Lee, ICML 2021, arXiv 2106.06445): mix in features,
where the model is more nearly linear. There their sum is pulled back to an input by a
learned network, and here a learned encoder merges them channel by channel,

    z = sum_i A_i h_d(x_i),   P = g(z),   f(x_j) ~ D(P, (f(x_i))_{i != j}, j),

with h_d the first d stages of the model, A_i matrices over channels, g a trunk, and D a
small network that sees the answers that came, zeros for the one that did not, and which
one that is. d = 0 mixes inputs, as Kosaian et al. (Learning a code, 2018) do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError
from codedgrad.inference.codes.interface import Learned
from codedgrad.inference.learned.outputs import divergence
from codedgrad.inference.learned.stages import frozen

_HIDDEN = 64  # of the decoder


class Mixed(Learned):
    """One redundant worker that mixes features of k queries.

    Attributes:
        depth: stages of the model before the mixture.
        mixers: A_1 ... A_k, [k, channels, channels].
        trunk: g.
        decoder: D.
    """

    name = "mixed"

    def __init__(
        self,
        stages: Sequence[nn.Module],
        depth: int,
        k: int,
        trunk: nn.Module,
        shape: tuple[int, int],
    ) -> None:
        """Takes the model's parts.

        Args:
            stages: modules whose composition is the model.
            depth: how many of them come before the mixture.
            k: queries of a group.
            trunk: from mixed features to `width` numbers.
            shape: channels of the features, and width of the answers.
        """
        if not 0 <= depth < len(stages):
            raise ConfigError(
                f"depth is 0 to {len(stages) - 1}, the model's stages before its last, "
                f"got {depth}"
            )
        super().__init__(nn.Sequential(*stages), k)
        channels, width = shape
        self.depth, self.trunk = depth, trunk
        self.name = f"mixed after {depth} stages"
        self._stages = frozen(stages[:depth])
        scale = torch.linspace(0.5, 1.5, k)[:, None, None]
        self.mixers = nn.Parameter(torch.eye(channels).repeat(k, 1, 1) * scale / k)
        self.decoder = nn.Sequential(
            nn.Linear((k + 1) * width + k, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, width),
        )

    def redundant(self, queries: Tensor) -> Tensor:
        """Return all queries: the features are mixed where they are computed."""
        return queries

    def back_up(self, sent: Tensor) -> Tensor:
        """Return g(z)."""
        flat: Tensor = self._stages(sent.flatten(0, 1))
        features = flat.unflatten(0, (len(sent), self.k))
        found: Tensor = self.trunk(self.mixed(features))
        return found

    def mixed(self, features: Tensor) -> Tensor:
        """Return z of features [groups, k, channels, ...]."""
        return torch.einsum("kdc,gkc...->gd...", self.mixers, features)

    def fill(
        self, own: Mapping[int, Tensor], parity: Tensor, missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the decoder's estimate."""
        nothing = torch.zeros_like(parity)
        known = [own.get(q, nothing) for q in range(self.k)]
        which = parity.new_zeros(len(parity), self.k)
        which[:, missing[0]] = 1
        return {missing[0]: self.decoder(torch.cat([parity, *known, which], 1))}

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained; the model's own stages are not."""
        learned = [*self.trunk.parameters(), *self.decoder.parameters()]
        return [self.mixers, *learned]

    def distance(self, queries: Tensor, exact: Tensor) -> Tensor:
        """Return the divergence of the estimates, each query missing in turn."""
        parity = self.back_up(queries)
        answers = dict(enumerate(exact.unbind(1)))
        found = [
            self.fill(
                {q: a for q, a in answers.items() if q != missing}, parity, [missing]
            )[missing]
            for missing in range(self.k)
        ]
        return divergence(torch.stack(found, 1), exact)
