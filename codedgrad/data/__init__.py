"""Which samples belong to which micro-batch of which step."""

from codedgrad.data.order import even
from codedgrad.data.sampler import (
    PARTITIONS,
    ShardBatchSampler,
    ShardSampler,
    StepShards,
)

__all__ = ["PARTITIONS", "ShardBatchSampler", "ShardSampler", "StepShards", "even"]
