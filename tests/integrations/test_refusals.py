"""What cannot be run for another worker's shard is refused by name, with a remedy.

Some of these errors end the job, so they are tried by one worker.
"""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from test_lightning import Module, fit, samples
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import codedgrad
from codedgrad.errors import ConfigError
from codedgrad.integrations import loaders
from codedgrad.integrations.lightning import CodedStrategy

pytestmark = pytest.mark.skipif(codedgrad.size() > 1, reason="ends the job")


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(8))


class Rows(BatchSampler):
    pass


def batches() -> Any:
    return Rows(SequentialSampler(samples()), 4, drop_last=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: list(d), "the training data are a list, wanted"),
        (lambda _: DataLoader(Stream(), 4), "Stream is an IterableDataset"),
        (
            lambda d: DataLoader(d, batch_sampler=batches()),
            "a batch_sampler of its own (Rows)",
        ),
        (lambda d: DataLoader(d, batch_size=None), "batch_size=None"),
        (
            lambda d: DataLoader(d, 4, sampler=WeightedRandomSampler([1.0] * 84, 84)),
            "a sampler of its own (WeightedRandomSampler)",
        ),
        (
            lambda d: DataLoader(d, 4, sampler=RandomSampler(d, num_samples=8)),
            "a sampler of its own (RandomSampler)",
        ),
        (lambda d: DataLoader(d, 50), "the dataset has 84 samples, fewer than"),
    ],
    ids=["list", "stream", "batches", "no-batches", "weighted", "some", "few"],
)
def test_data_that_cannot_be_taken_over(make: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaders.take_over(make(samples()), workers=2, seed=0)
    assert words in str(error.value)


def test_data_that_are_taken_over() -> None:
    data = samples()
    plain = loaders.take_over(DataLoader(data, 4, shuffle=True), workers=3, seed=7)
    assert (plain.batch_size, plain.seed, len(plain)) == (12, 7, 7)
    assert plain.order().tolist() != list(range(84))
    still = loaders.take_over(DataLoader(data, 5, drop_last=True), workers=2, seed=0)
    assert (len(still), still.order().tolist()) == (8, list(range(84)))
    own = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    divided = loaders.take_over(DataLoader(data, 4, sampler=own), workers=2, seed=0)
    assert divided.order().tolist() == list(range(84))


class Dicts(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return {"a": index}


@pytest.mark.parametrize("loading", [0, 2])
def test_a_batch_is_what_the_loader_would_give(loading: int) -> None:
    for data in (samples(), Dicts(), [(1.0, 2)] * 12, list(range(12))):
        loader = DataLoader(data, 4, num_workers=loading)
        sampler = loaders.take_over(loader, workers=1, seed=0)
        steps = sampler.steps(2, 1, whole=True, own=[(0, 2)])
        for shards, batch in zip(steps, loader, strict=True):
            got = loaders.batch_of(shards.fetch(0, 2))
            assert type(got) is type(batch)
            assert str(got) == str(batch)


def test_a_checkpoint_of_other_steps() -> None:
    sampler = loaders.take_over(DataLoader(samples(), 4), workers=2, seed=0)
    loader = loaders.StepLoader(lambda: pytest.fail("begun"), sampler)
    loader.load_state_dict({"epoch": 0, "next": 2, "batch_size": 16})
    with pytest.raises(ConfigError, match="steps of 16 samples, and a step has 8"):
        next(iter(loader))
    with codedgrad.CodedGradient(torch.nn.Linear(8, 3)) as coded:
        loader = loaders.StepLoader(lambda: coded, sampler)
        loader.load_state_dict({"epoch": 0, "next": 9, "batch_size": 8})
        assert [shards.index for shards in loader] == [9, 10]
        assert [shards.index for shards in loader] == list(range(11))
        loader.load_state_dict({"epoch": 7, "next": 9, "batch_size": 16})
        assert next(iter(loader)).index == 0
        assert loader.state_dict() == {"epoch": 0, "next": 1, "batch_size": 8}


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Nothing(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Metered(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.right(self.net(batch[0]), batch[1])
        return super().training_step(batch, batch_idx)


class LogsMeter(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("right", self.right)
        return super().training_step(batch, batch_idx)


class LogsLargest(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("largest", batch[0].max(), reduce_fx="max")
        return super().training_step(batch, batch_idx)


class Gathers(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.all_gather(batch[0])
        return super().training_step(batch, batch_idx)


class Backs(Module):
    def backward(self, loss: Any) -> None:
        loss.backward(retain_graph=True)
        loss.backward()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Manual, "Manual has automatic_optimization=False"),
        (Nothing, "training_step returned NoneType"),
        (Metered, "logs 'right' as a torchmetrics.Metric"),
        (LogsMeter, "logs 'right' as a torchmetrics.Metric"),
        (LogsLargest, "logs 'largest' with reduce_fx='max'"),
        (Gathers, "training_step called all_gather()"),
        (Backs, "the backward of a coded step's loss was called twice"),
    ],
)
def test_modules_that_cannot_be_run_again(module: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        fit(module(), CodedStrategy())
    assert words in str(error.value)


def test_words_of_the_trainer_that_fit_no_coded_training() -> None:
    with pytest.raises(ConfigError, match="sync_batchnorm=True waits"):
        fit(Module(), CodedStrategy(), sync_batchnorm=True)
    with pytest.raises(ConfigError, match=r"devices=3.* codedgrad run -n 3"):
        fit(Module(), CodedStrategy(), devices=3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        CodedStrategy(micro=3)  # type: ignore[call-arg]


def test_two_strategies_at_once() -> None:
    distributed = torch.distributed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "is_initialized", lambda: True)
        patch.setattr(distributed, "get_world_size", lambda: 2)
        with pytest.raises(ConfigError, match="another strategy"):
            fit(Module(), CodedStrategy())


def test_two_train_loaders() -> None:
    loader = DataLoader(samples(), 4)
    trainer = lightning.Trainer(
        strategy=CodedStrategy(), accelerator="cpu", logger=False, max_epochs=1
    )
    with pytest.raises(ConfigError, match="one train DataLoader"):
        trainer.fit(Module(), [loader, loader])
