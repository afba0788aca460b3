"""Where things lie in a row: everything once, in memory order, in buckets."""

from __future__ import annotations

import itertools

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from torch import Tensor, nn

from codedgrad import ConfigError, codes
from codedgrad.job import _engine
from codedgrad.row import checks
from codedgrad.row.cuts import GRAIN
from codedgrad.row.encoder import encoder_of
from codedgrad.row.layout import Layout
from codedgrad.row.payload import Payload


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    net[2].bias.requires_grad_(requires_grad=False)
    return net


def layout_of(net: nn.Module, workers: int = 1, **settings: object) -> Layout:
    return Layout(
        net.named_parameters(),
        net.named_buffers(),
        workers=workers,
        settings=ExchangeSettings(**settings),
    )


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("workers", [1, 5])
def test_every_element_belongs_to_one_thing(wire: str, workers: int) -> None:
    net = model()
    layout = layout_of(net, workers, wire=wire, bucket_mb=0.0001)
    assert layout.names == [n for n, _ in net.named_parameters()][:-1]
    assert layout.buffer_names == [
        f"1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    ]
    row = torch.zeros(layout.count)
    for i, p in enumerate(layout.parameters):
        view = layout.view(i, row)
        assert view.shape == p.shape
        assert view.storage_offset() == layout.offset(i)
        view += 1
    assert (row[: layout.gradients] == 1).all()
    tail = row[layout.gradients :]
    assert not tail.any()
    tail[layout.change_area] += 1
    tail[layout.used_area] += 1
    tail[layout.check_area] += 1
    tail[layout.moved_place] += 1
    tail[layout.loss_place] += 1
    parts = 3 + 3 + 1 + len(layout.parameters) + checks.ELEMENTS + 2
    assert (tail[:parts] == 1).all()
    assert not tail[parts:].any()


def test_the_last_parameter_comes_first() -> None:
    layout = layout_of(model())
    ends = [layout.offset(i) + p.numel() for i, p in enumerate(layout.parameters)]
    assert ends[0] == layout.gradients
    assert layout.offset(len(ends) - 1) == 0
    assert layout.tensor_ends() == sorted(ends)


def test_memory_order_and_type() -> None:
    assert layout_of(model().double()).dtype == torch.float64
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    assert layout_of(net).strides(0) == net.weight.stride()
    gaps = nn.Parameter(torch.ones(6, 4)[:, :2])  # a view with gaps
    layout = Layout([("gaps", gaps)])
    assert layout.strides(0) == (2, 1)
    assert layout.gradients == 12


def test_every_worker_owns_something_and_buckets_cover() -> None:
    assert layout_of(nn.Linear(1, 1), workers=8).count >= GRAIN * 8
    layout = layout_of(nn.Linear(100, 100), bucket_mb=0.01)
    starts = layout.bucket_starts
    assert starts[0] == 0
    assert starts[-1] == layout.count
    assert starts == sorted(set(starts))
    assert len(starts) > 3


def test_parameters_know_their_buckets() -> None:
    net = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    net.register_parameter("empty", nn.Parameter(torch.ones(0, 3)))
    layout = layout_of(net, bucket_mb=0.002)
    bounds = list(itertools.pairwise(layout.bucket_starts))
    for i, p in enumerate(layout.parameters):
        begin, end = layout.offset(i), layout.offset(i) + p.numel()
        want = [b for b, (f, u) in enumerate(bounds) if max(begin, f) < min(end, u)]
        assert list(layout.buckets_of(i)) == want


def test_narrow_wires_leave_the_tail_alone() -> None:
    layout = layout_of(nn.Linear(100, 100), 4, wire="bfloat16", bucket_mb=0.005)
    assert layout.bucket_starts[-2] == layout.gradients
    last = len(layout.bucket_starts) - 2
    assert layout.narrow_buckets == last > 1
    assert [layout.wire_of(b) for b in range(last)] == [torch.bfloat16] * last
    assert layout.wire_of(last) is None
    assert layout.count - layout.gradients >= GRAIN * 4
    wide = layout_of(nn.Linear(100, 100), 4)
    assert wide.narrow_buckets == 0
    assert wide.wire_of(0) is None


def test_buckets_are_cut_again_by_what_a_message_costs() -> None:
    net = nn.Linear(2000, 1000, device="cpu")
    layout = layout_of(net, workers=2)
    assert layout.worth_measuring()
    before = layout.bucket_starts
    layout.cut(0.001)
    assert len(layout.bucket_starts) > len(before)
    assert not layout_of(net, workers=1).worth_measuring()
    assert not layout_of(net, workers=2, bucket_mb=1.0).worth_measuring()
    assert not layout_of(nn.Linear(9, 9), workers=2).worth_measuring()


def test_a_description_differs_where_models_do() -> None:
    def shown(net: nn.Module) -> list[tuple[str, str]]:
        return layout_of(net).describe()

    assert shown(model()) == shown(model())
    assert shown(model()) != shown(model().double())
    assert shown(model()) != shown(nn.Sequential(*model()[:2]))
    assert ("parameter 0 '0.weight'", "(3, 2, 3, 3) torch.float32") in shown(model())


def test_bad_models() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        layout_of(frozen)
    frozen.register_buffer("some", torch.ones(3))
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        layout_of(frozen)
    apart = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match=r"several devices \(cpu, meta\)"):
        layout_of(apart)
    with pytest.raises(ConfigError, match=r"on meta.*model.cuda"):
        layout_of(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ConfigError, match="is complex"):
        layout_of(nn.Linear(2, 2, dtype=torch.complex64))


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="bucket_mb"):
        layout_of(nn.Linear(2, 2), bucket_mb=0)
    with pytest.raises(ConfigError, match=r"wire must be one of float32.*got 'int8'"):
        layout_of(nn.Linear(2, 2), wire="int8")
    with pytest.raises(ConfigError, match=r"float64.*cannot travel as float16"):
        layout_of(nn.Linear(2, 2).double(), wire="float16")


def row_of_last_bucket(payload: Payload) -> Tensor:
    """A row of which only the last bucket is written, so that pages stay untouched."""
    row = torch.empty(payload.layout.count)
    payload.tail.fill(1.0)
    last = len(payload.layout.bucket_starts) - 2
    assert encoder_of(payload).bucket(last, row, 0.5, ())
    return row


def test_more_than_two_to_the_31_elements() -> None:
    """A dry run: memory is asked for, and touched in the last bucket only."""
    first, workers = 7, 4
    big = nn.Parameter(torch.empty((1 << 31) + 77), requires_grad=True)
    small = nn.Parameter(torch.ones(first))
    payload = Payload([("small", small), ("big", big)], workers=workers)
    layout = payload.layout
    assert layout.offset(0) == big.numel()
    small.grad = torch.arange(float(first))
    row = row_of_last_bucket(payload)
    assert layout.view(0, row).storage_offset() == big.numel()
    assert torch.equal(layout.view(0, row), 0.5 * small.grad)
    # The engine's side: offsets, and tags for so many buckets.
    hub = _engine.LocalHub(workers)
    engine = _engine.Engine.over_local(hub, 0)
    tree = codes.spread(workers).tree
    plan = _engine.tree_plan(tree.left, tree.right, tree.parent, tree.root)
    settings = _engine.SessionSettings(plan=plan, bucket_starts=layout.bucket_starts)
    exchange = _engine.Exchange(engine, settings)
    buffer = exchange.acquire()
    assert buffer.bytes == 4 * layout.count > 1 << 33
    exchange.close()
    engine.stop(0.0)
