"""Models of ResNet-50's and GPT-2's shape, as wide as wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A residual block of ResNet-50."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        """Make a block from `inside` to `outside` channels."""
        super().__init__()
        narrow = outside // 4
        self.path = nn.Sequential(
            nn.Conv2d(inside, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.skip = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False),
                nn.BatchNorm2d(outside),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.path(x) + self.skip(x))


def resnet(width: int = 4, classes: int = 10) -> nn.Module:
    """Return a model of ResNet-50's shape; with `width` 64 it is ResNet-50.

    The narrow ones are for images of 8 x 8, the wide one for images of 224 x 224.
    """
    base = width
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    if width == 64:
        layers[0] = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        outside = 4 * base * 2**stage
        for index in range(blocks):
            layers.append(Bottleneck(width, outside, 1 + (index == 0 and stage > 0)))
            width = outside
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


class Gpt(nn.Module):
    """A model of GPT-2's shape; 768 wide with 50,257 words it has its 124 M parameters.

    It attends to all tokens, not only to those before.
    """

    def __init__(self, width: int = 16, words: int = 64, longest: int = 8) -> None:
        """Make twelve blocks, for sequences of at most `longest` tokens."""
        super().__init__()
        self.tokens = nn.Embedding(words, width)
        self.places = nn.Embedding(longest, width)
        heads = max(2, width // 64)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(12)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [samples, tokens, words]."""
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        for layer in self.blocks:
            h = layer(h)
        out: Tensor = self.head(self.norm(h))
        return out
