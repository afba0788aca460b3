"""The stages of a model: modules whose composition is the model.

A stand-in takes over the first ones, frozen, and answers from what they give. A model
that shows no stages is imitated from its inputs.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def stages_of(
    model: nn.Module, stages: Sequence[nn.Module] | None = None
) -> list[nn.Module]:
    """Returns a model's stages: those given, else the parts of a Sequential, else none.

    Args:
        model: the model.
        stages: modules whose composition it is.
    """
    if stages is not None:
        for stage in stages:
            if not isinstance(stage, nn.Module):
                raise ConfigError(
                    f"stages are torch modules, got {type(stage).__qualname__}"
                )
        return list(stages)
    if isinstance(model, nn.Sequential) and len(model) > 1:
        return list(model)
    return []


def through(stages: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Returns what the stages give, one after the other."""
    for stage in stages:
        inputs = stage(inputs)
    return inputs


def check_stages(stages: Sequence[nn.Module], inputs: Tensor, answers: Tensor) -> None:
    """Refuses stages whose composition is another function than the model.

    Args:
        stages: the stages, in eval mode.
        inputs: some samples.
        answers: the model's.

    Raises:
        ConfigError: they give something else.
    """
    try:
        found = through(stages, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"the stages cannot be called one after the other ({error}); give "
            f"stages=[...] whose composition is the model, or stages=[] for none"
        ) from error
    if found.shape != answers.shape or not torch.allclose(
        found, answers, rtol=1e-3, atol=1e-4, equal_nan=True
    ):
        raise ConfigError(
            "the stages, called one after the other, answer otherwise than the model; "
            "give stages=[...] whose composition is the model, or stages=[] for none"
        )


def frozen(stages: Sequence[nn.Module]) -> nn.Sequential:
    """Returns a copy of stages that no training changes, in eval mode."""
    copied = nn.Sequential(*(copy.deepcopy(stage) for stage in stages))
    return copied.eval().requires_grad_(False)
