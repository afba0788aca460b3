"""Synchronous data-parallel training at the speed of the fastest sufficient workers.

Example:
    >>> codedgrad.init()                                        # doctest: +SKIP
    >>> coded = codedgrad.CodedGradient(model)                  # doctest: +SKIP
    >>> for shards in coded.steps(sampler):                     # doctest: +SKIP
    ...     loss = coded.backward(lambda x, y: criterion(model(x), y), shards)
    ...     optimizer.step()
    ...     optimizer.zero_grad()
"""

from __future__ import annotations

import sys

from codedgrad import codes, monitor
from codedgrad.data import ShardBatchSampler, ShardSampler, ShardStream, batches
from codedgrad.errors import (
    CodedGradError,
    ConfigError,
    DataError,
    EnvironmentSetupError,
    MismatchError,
    NonFiniteError,
    OverloadError,
    WorkerError,
)
from codedgrad.gradient import CodedGradient
from codedgrad.hvd import optimizer
from codedgrad.hvd.optimizer import DistributedOptimizer, join
from codedgrad.hvd.words import Average, Compression, Sum
from codedgrad.inference import CodedPredictor, Each, deadline, evaluate, exact
from codedgrad.integrations import ddp
from codedgrad.job import faults, settings
from codedgrad.job.broadcast import broadcast_optimizer_state, broadcast_parameters
from codedgrad.job.checkpoint import save
from codedgrad.job.collectives import (
    allgather,
    allgather_object,
    allreduce,
    broadcast_object,
)
from codedgrad.job.faults import Faults
from codedgrad.job.lifecycle import init, is_initialized, shutdown
from codedgrad.job.runtime import (
    barrier,
    cross_rank,
    cross_size,
    leads,
    local_rank,
    local_size,
    lost_workers,
    rank,
    size,
)
from codedgrad.job.settings import (
    ExchangeSettings,
    HelpSettings,
    RunSettings,
    Settings,
    approximate,
)

sys.modules[f"{__name__}.ddp"] = ddp
# These were modules of their own.
sys.modules[f"{__name__}.optimizer"] = optimizer
sys.modules[f"{__name__}.faults"] = faults
sys.modules[f"{__name__}.settings"] = settings

__version__ = "0.1.0"

__all__ = [
    "Average",
    "CodedGradError",
    "CodedGradient",
    "CodedPredictor",
    "Compression",
    "ConfigError",
    "DataError",
    "DistributedOptimizer",
    "Each",
    "EnvironmentSetupError",
    "ExchangeSettings",
    "Faults",
    "HelpSettings",
    "MismatchError",
    "NonFiniteError",
    "OverloadError",
    "RunSettings",
    "Settings",
    "ShardBatchSampler",
    "ShardSampler",
    "ShardStream",
    "Sum",
    "WorkerError",
    "allgather",
    "allgather_object",
    "allreduce",
    "approximate",
    "barrier",
    "batches",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "codes",
    "cross_rank",
    "cross_size",
    "ddp",
    "deadline",
    "evaluate",
    "exact",
    "init",
    "is_initialized",
    "join",
    "leads",
    "local_rank",
    "local_size",
    "lost_workers",
    "monitor",
    "rank",
    "save",
    "shutdown",
    "size",
]
