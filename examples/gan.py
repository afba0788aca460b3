"""A generative adversarial network: two models, each with a gradient of its own.

    codedgrad run -n 4 examples/gan.py --steps 500

The generator learns to draw points from a ring. Where a loss function calls a module of
the other model whose state its passes would change, name it with `also=`; the
discriminator here has none, and its parameters get no gradient in the generator's pass.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import codedgrad
from codedgrad.data import Draw


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """Return a small network."""
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def ring(draw: Draw, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return some points of the ring, and the noise for as many false ones."""
    angle = 2 * torch.pi * torch.rand(draw.count, generator=generator)
    noise = torch.randn(draw.count, 8, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1), noise


def main() -> float:
    """Train; return the mean radius of what the generator draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()

    codedgrad.init()
    torch.manual_seed(1)
    maker, judge = perceptron(8, 2), perceptron(2, 1)
    optimizers = [
        torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.5, 0.9))
        for model in (maker, judge)
    ]
    for model in (maker, judge):
        codedgrad.broadcast_parameters(model.state_dict())
    of_maker = codedgrad.CodedGradient(maker)
    of_judge = codedgrad.CodedGradient(judge)
    judged = nn.functional.binary_cross_entropy_with_logits

    def judge_loss(points: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            false = maker(noise)
        right, wrong = judge(points), judge(false)
        real = judged(right, torch.ones_like(right))
        return real + judged(wrong, torch.zeros_like(wrong))

    def maker_loss(_: Tensor, noise: Tensor) -> Tensor:
        told = judge(maker(noise))
        return judged(told, torch.ones_like(told))

    sampler = codedgrad.batches(ring, args.steps, 32 * codedgrad.size(), chunk=4)
    for shards in of_judge.steps(sampler):
        of_judge.backward(judge_loss, shards)
        optimizers[1].step()
        optimizers[1].zero_grad()
        judge.requires_grad_(False)  # the generator's passes give it no gradient
        loss = of_maker.backward(maker_loss, shards)
        judge.requires_grad_(True)
        optimizers[0].step()
        optimizers[0].zero_grad()
        if codedgrad.rank() == 0 and shards.index % 100 == 0:
            print(f"step {shards.index}: the generator's loss {float(loss):.3f}")
    with torch.no_grad():
        radius = float(maker(torch.randn(512, 8)).norm(dim=1).mean())
    if codedgrad.rank() == 0:
        print(f"mean radius of 512 points: {radius:.2f}, wanted 1")
    of_maker.close()
    of_judge.close()
    return radius


if __name__ == "__main__":
    main()
