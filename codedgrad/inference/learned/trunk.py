"""Narrow trunks and exit heads: small networks from features to answers.

What a trunk looks like follows from its features alone: convolutions over images
[channels, height, width] and series [channels, length], layers over vectors. It is
trained with normalisation, which is then folded into its layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SMALL = 4  # positions a side that the last layer sees
_HEAD = 2  # positions a side that an exit sees


def trunk(
    shape: Sequence[int], width: int, outputs: int, norm: bool = True
) -> nn.Sequential:
    """Returns a narrow network.

    Args:
        shape: of one query's features.
        width: of its first layer; later ones have twice as many channels.
        outputs: how many numbers it answers.
        norm: with normalisation, for training.
    """
    if len(shape) == 1:
        layers: list[nn.Module] = [
            nn.Linear(shape[0], 2 * width),
            *_after(nn.BatchNorm1d(2 * width), norm),
            nn.Linear(2 * width, 2 * width),
            *_after(nn.BatchNorm1d(2 * width), norm),
            nn.Linear(2 * width, outputs),
        ]
        return nn.Sequential(*layers)
    flat = len(shape) == 2
    conv: type[nn.Module] = nn.Conv1d if flat else nn.Conv2d
    batch: type[nn.Module] = nn.BatchNorm1d if flat else nn.BatchNorm2d
    kernel = 5 if flat else 3
    channels, sides = shape[0], list(shape[1:])
    layers = []
    for number in range(8):
        wide = width if number == 0 else 2 * width
        stride = 2 if min(sides) > _SMALL else 1
        layers += [
            conv(channels, wide, kernel, stride=stride, padding=kernel // 2),
            *_after(batch(wide), norm),
        ]
        channels, sides = wide, [-(-side // stride) for side in sides]
        if number >= 1 and min(sides) <= 2 * _SMALL:
            break
    if max(sides) > 2 * _SMALL:
        sides = [min(side, 2 * _SMALL) for side in sides]
        layers.append(_pool(sides))
    places = math.prod(sides)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * places, outputs))


def head(shape: Sequence[int], outputs: int) -> nn.Sequential:
    """Returns an exit: one linear layer on averages over a few positions.

    Args:
        shape: of one query's features.
        outputs: how many numbers it answers.
    """
    check_features(shape)
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], outputs))
    sides = [min(_HEAD if len(shape) == 3 else _HEAD**2, side) for side in shape[1:]]
    places = shape[0] * math.prod(sides)
    return nn.Sequential(_pool(sides), nn.Flatten(), nn.Linear(places, outputs))


def check_features(shape: Sequence[int]) -> None:
    """Refuses features that no trunk is known for.

    Raises:
        ConfigError: a query is a single number, or has more than three dimensions.
    """
    if len(shape) not in (1, 2, 3):
        raise ConfigError(
            f"a trunk is known for vectors, series and images, a query's features are "
            f"{tuple(shape)}; give stages=[...] of which the first gives one of these"
        )


def folded(net: nn.Sequential) -> nn.Sequential:
    """Returns a trained network in eval mode, its normalisation in its layers."""
    net = net.eval()
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            before = layers.pop()
            if isinstance(before, nn.Linear):
                layers.append(fuse_linear_bn_eval(before, layer))
            else:
                assert isinstance(before, (nn.Conv1d, nn.Conv2d))
                layers.append(fuse_conv_bn_eval(before, layer))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _pool(sides: Sequence[int]) -> nn.Module:
    if len(sides) == 1:
        return nn.AdaptiveAvgPool1d(sides[0])
    return nn.AdaptiveAvgPool2d((sides[0], sides[1]))


def _after(batch: nn.Module, norm: bool) -> list[nn.Module]:
    return [batch, nn.ReLU()] if norm else [nn.ReLU()]
