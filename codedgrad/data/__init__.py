"""Which samples belong to which micro-batch of which step."""

from codedgrad.data.batch_sampler import ShardBatchSampler
from codedgrad.data.made import Draw, MadeBatches, batches
from codedgrad.data.order import even
from codedgrad.data.sampler import PARTITIONS, ShardSampler
from codedgrad.data.shards import StepShards
from codedgrad.data.source import Source
from codedgrad.data.stream import ShardStream

__all__ = [
    "PARTITIONS",
    "Draw",
    "MadeBatches",
    "ShardBatchSampler",
    "ShardSampler",
    "ShardStream",
    "Source",
    "StepShards",
    "batches",
    "even",
]
