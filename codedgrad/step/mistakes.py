"""First mistakes in calling `CodedGradient`: told with what was meant, perhaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

from codedgrad.codes import Code
from codedgrad.data import ShardBatchSampler, Source
from codedgrad.errors import ConfigError
from codedgrad.step import live

if TYPE_CHECKING:
    from codedgrad.step.subject import Subject


def check_model(model: Any, code: Any) -> None:
    """Refuse what is no model, or no code.

    Raises:
        ConfigError: with the remedy.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"CodedGradient(model, code) takes an nn.Module, got a "
            f"{type(model).__name__}; give the model whose gradient is wanted"
        )
    if code is None or isinstance(code, Code):
        return
    remedy = "give one of codedgrad.codes, or leave it out for the usual one"
    if isinstance(code, optim.Optimizer):
        remedy = (
            "leave the optimizer out, and call its step() after coded.backward(...), "
            "which sets p.grad"
        )
    elif isinstance(code, nn.Module):
        remedy = "name further modules that the loss function calls with also=[...]"
    raise ConfigError(
        f"CodedGradient(model, code) takes a code, got a {type(code).__name__}; "
        f"{remedy}"
    )


def check_source(source: Any) -> None:
    """Refuse what gives no steps.

    Raises:
        ConfigError: with the remedy.
    """
    if isinstance(source, Source):
        return
    remedy = "make one of your dataset"
    if isinstance(source, DataLoader):
        remedy = (
            "give the DataLoader's dataset to codedgrad.ShardSampler(dataset, "
            "batch_size, num_workers=...), with batch_size of all workers together"
        )
    elif isinstance(source, ShardBatchSampler):
        remedy = "a ShardBatchSampler is for the DataLoader of DistributedOptimizer"
    elif isinstance(source, (Dataset, Tensor)):
        remedy = "give it to codedgrad.ShardSampler(dataset, batch_size)"
    raise ConfigError(
        f"coded.steps() takes a ShardSampler, a ShardStream or batches(...), got a "
        f"{type(source).__name__}; {remedy}"
    )


def check_backward(subject: Subject, loss_fn: Any, shards: Any) -> None:
    """Refuse a loss that was computed already, shards that are none, what is closed.

    Raises:
        ConfigError: with the remedy.
    """
    live.check_open(subject)
    if not callable(loss_fn):
        raise ConfigError(
            f"coded.backward(loss_fn, shards) takes a function, got a "
            f"{type(loss_fn).__name__}: any worker may call it with any part of the "
            f"batch; give lambda x, y: criterion(model(x), y), which is called with "
            f"the tensors of the batch and returns its mean loss"
        )
    if not hasattr(shards, "fetch"):
        raise ConfigError(
            f"coded.backward(loss_fn, shards) takes what `for shards in "
            f"coded.steps(sampler)` gives, got a {type(shards).__name__}"
        )
