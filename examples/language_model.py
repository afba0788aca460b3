"""A language model of bytes: windows of a text, and a loss weighted by its tokens.

    codedgrad run -n 4 examples/language_model.py --steps 300

Each window is one line of Python's own standard library, of whatever length; what is
behind its end is ignored. So passes have unequal numbers of tokens. The loss function
returns that number beside the loss, and the gradient is that of the mean over all
tokens of the step, whoever computed which of them.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn

import codedgrad
from codedgrad.data import Draw

LONGEST, IGNORED = 64, -100


def lines_of_text() -> list[bytes]:
    """Return some lines, the same on every worker."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"\n".join(f.read_bytes() for f in sorted(folder.glob("a*.py")))
    return [line for line in text.splitlines() if len(line) > 8]


class Model(nn.Module):
    """Predicts the next byte by a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 32)
        self.mix = nn.GRU(32, 64, batch_first=True)
        self.out = nn.Linear(64, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores of the byte that follows each byte."""
        return self.out(self.mix(self.embed(tokens))[0])


def main() -> float:
    """Train; return the last loss in nats for each byte."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    codedgrad.init()
    torch.manual_seed(1)
    model, lines = Model(), lines_of_text()
    codedgrad.broadcast_parameters(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    coded = codedgrad.CodedGradient(model)

    def windows(draw: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(draw.count, LONGEST, dtype=torch.int64)
        labels = torch.full((draw.count, LONGEST), IGNORED)
        chosen = torch.randint(len(lines), (draw.count,), generator=generator)
        for row, line in enumerate(chosen.tolist()):
            text = torch.tensor(list(lines[line][: LONGEST + 1]))
            tokens[row, : len(text) - 1] = text[:-1]
            labels[row, : len(text) - 1] = text[1:]
        return tokens, labels

    def loss_fn(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        out = model(tokens).flatten(0, 1)
        loss = nn.functional.cross_entropy(out, labels.flatten(), ignore_index=IGNORED)
        return loss, (labels != IGNORED).sum()

    sampler = codedgrad.batches(windows, args.steps, 8 * codedgrad.size(), chunk=1)
    for shards in coded.steps(sampler):
        loss = coded.backward(loss_fn, shards)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if codedgrad.rank() == 0 and shards.index % 50 == 0:
            print(f"step {shards.index}: {float(loss):.3f} nats for each byte")
    coded.close()
    return float(loss)


if __name__ == "__main__":
    main()
