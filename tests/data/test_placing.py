"""Batches of any structure: copied to a device, and put together."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from codedgrad import ConfigError, ShardSampler
from codedgrad.data.placing import Placer, joined, mapped

Pair = namedtuple("Pair", "x y")


class Encoding(UserDict):  # type: ignore[type-arg]
    """As BatchEncoding of transformers: more than its items."""

    def __init__(self, data: Any, kind: str = "") -> None:
        super().__init__(data)
        self.kind = kind


class Listed(list):  # type: ignore[type-arg]
    pass


def filled(value: float) -> dict[str, Any]:
    t = torch.full((2, 3), value)
    return {
        "dict": {"a": t, "b": [t, "text"]},
        "ordered": OrderedDict(a=t),
        "default": defaultdict(list, a=t),
        "encoding": Encoding({"input_ids": t}, "bert"),
        "read only": MappingProxyType({"a": t}),
        "pair": Pair(t, [3, t]),
        "tuple": (t, (t, None)),
        "list": Listed([t]),
        "alone": t,
    }


@pytest.mark.parametrize("kind", filled(0.0))
def test_tensors_are_moved_and_types_stay(kind: str) -> None:
    value = filled(1.0)[kind]
    moved = mapped(value, lambda t: t + 1)
    assert type(moved) in (type(value), dict)
    assert type(moved) is type(value) or isinstance(value, MappingProxyType)
    for a, b in zip(leaves(moved), leaves(value), strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b + 1)
        else:
            assert a == b
    assert repr(filled(1.0)[kind]) == repr(value)  # as it was
    if isinstance(value, Encoding):
        assert moved.kind == "bert"


def leaves(value: Any) -> list[Any]:
    if isinstance(value, UserDict | MappingProxyType):
        value = dict(value)
    return tree_leaves(list(value) if isinstance(value, Listed) else value)


def test_packed_sequences() -> None:
    packed = pack_sequence([torch.ones(2), torch.ones(4)], enforce_sorted=False)
    moved = mapped(packed, lambda t: t.clone())
    assert isinstance(moved, PackedSequence)
    for a, b in zip(moved, packed, strict=True):
        assert torch.equal(a, b)
    assert moved.batch_sizes is packed.batch_sizes  # stays on the CPU
    ordered = pack_sequence([torch.ones(4), torch.ones(2)])
    assert mapped(ordered, lambda t: t).sorted_indices is None


def test_a_batch_comes_on_the_device() -> None:
    data = TensorDataset(torch.ones(16, 2), torch.arange(16))
    for processes in (0, 1):
        sampler = ShardSampler(data, 8, device="meta", num_workers=processes)
        steps = sampler.steps(2, own=[(0, 1)])
        step = next(steps)
        assert all(t.device.type == "meta" for t in step.fetch(0) + step.fetch(1))
        steps.close()
    assert Placer("cpu")(data[0])[0].device.type == "cpu"


@pytest.mark.parametrize(
    "kind", sorted(set(filled(0.0)) - {"tuple", "dict", "pair", "list"})
)
def test_batches_are_joined(kind: str) -> None:
    value = joined([filled(1.0)[kind], filled(2.0)[kind]])
    (tensor,) = leaves(value)
    assert tensor.tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2


def test_lists_are_joined_item_by_item() -> None:
    one, two = (torch.ones(n) for n in (1, 2))
    got = joined([Pair(one, ["a"]), Pair(two, ["b", "c"])])
    assert type(got) is Pair
    assert got.x.tolist() == [1.0] * 3
    assert got.y == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([torch.ones(1), [1]], r"several types: \['Tensor', 'list'\]"),
        ([{"a": 1}, {"b": 1}], "other keys"),
        ([(1,), (1, 2)], "several lengths"),
        ([3, 4], "int of several parts cannot be joined"),
    ],
)
def test_what_cannot_be_joined(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        joined(values)
