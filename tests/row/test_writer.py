"""Rows written while a backward runs: the same bits, and nothing sent too early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from codedgrad.settings import ExchangeSettings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codedgrad import ConfigError
from codedgrad.row.arrival import ArrivalOrder
from codedgrad.row.payload import Payload
from codedgrad.row.writer import Leaf, RowWriter

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH, WIDTH = 4, 12
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


def layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))


class Bench:
    """One model; `row` writes a row and notes what was sent before its end."""

    def __init__(self, model: nn.Module, *, overlap: bool = True) -> None:
        self.model = model
        self.payload = Payload(
            model.named_parameters(), settings=ExchangeSettings(bucket_mb=0.0002)
        )
        self.layout = self.payload.layout
        assert len(self.layout.bucket_starts) > 8
        self.writer = RowWriter(self.payload, overlap=overlap)
        self.early: list[int] = []
        self.sent: list[int] = []
        self.checked: list[bool] = []
        self.flags: list[Tensor] = []  # of a device's rows
        self.strict = False  # True: a bucket that is not finite ends the pass

    def whole(self) -> int:
        """The number of buckets without a part of the tail."""
        return sum(e <= self.layout.gradients for e in self.layout.bucket_starts[1:])

    def bucket_checked(self, finite: bool) -> None:
        assert len(self.checked) == len(self.sent)  # before it is sent
        self.checked.append(finite)
        if self.strict and not finite:
            raise ArithmeticError

    def row_flagged(self, flag: Tensor) -> None:
        self.flags.append(flag)

    def bucket_ready(self, bucket: int) -> None:
        self.sent.append(bucket)

    def row(
        self, forward: Callable[..., Tensor], sums: tuple[Tensor, ...] = ()
    ) -> Tensor:
        out = torch.full((self.layout.count,), torch.nan)
        self.sent, self.checked = [], []
        self.writer.begin(Leaf(out, 0.3, sums, self, early=True))
        loss = forward(X).square().sum()
        self.writer.backward_begins()
        loss.backward()
        self.early = self.sent.copy()
        copies = {
            b: out[self.layout.bucket_starts[b] : self.layout.bucket_starts[b + 1]]
            for b in self.early
        }
        copies = {b: piece.clone() for b, piece in copies.items()}
        self.writer.finish(1.5)
        for b, piece in copies.items():  # nothing is written after it was sent
            begin, end = self.layout.bucket_starts[b : b + 2]
            assert torch.equal(out[begin:end], piece)
        buckets = len(self.layout.bucket_starts) - 1
        assert sorted(self.sent) == list(range(buckets))
        for p in self.layout.parameters:
            p.grad = None
        return out


def same(
    model: nn.Module,
    forwards: list[Callable[..., Tensor]],
    change: Callable[[nn.Module], Any] = lambda _: None,
) -> Bench:
    """The last row with overlap is that without; returns the bench with it."""
    early, late = Bench(model), Bench(model, overlap=False)
    change(model)
    generator = torch.Generator().manual_seed(2)
    sums = tuple(torch.randn(early.layout.count, generator=generator) for _ in "ab")
    for forward in forwards:
        got = early.row(forward, sums)
        assert torch.equal(got, late.row(forward, sums))
    assert not late.early
    return early


def test_the_first_pass_learns_and_the_second_overlaps() -> None:
    model = layers()
    assert same(model, [model]).early == []
    bench = same(model, [model, model])
    assert len(bench.early) >= bench.whole() - 1
    assert bench.early == sorted(bench.early)  # the last layer's come first


def test_a_parameter_without_gradient_holds_its_buckets_only() -> None:
    model = layers()
    bench = same(model, [model, model, lambda x: model[3](model[2](model[0](x)))])
    held = set(bench.sent) - set(bench.early)
    skipped = {b for i in (2, 3) for b in bench.layout.buckets_of(i)}
    assert skipped <= held
    assert bench.early


def test_a_parameter_that_comes_back() -> None:
    model = layers()
    skip = lambda x: model[3](model[0](x))  # noqa: E731
    bench = same(model, [skip, model, skip, model])
    assert bench.early


def test_tied_weights_and_empty_tensors() -> None:
    model = layers()
    model[3].weight = model[0].weight
    model.register_parameter("nothing", nn.Parameter(torch.ones(0, 3)))
    assert same(model, [model, model]).early


def test_mixed_precision() -> None:
    model = layers()
    model[1].bfloat16()
    forward = lambda x: model[3](model[2](model[1](model[0](x).bfloat16()).float()))  # noqa: E731
    assert same(model, [forward, forward]).early


def twice(model: nn.Module) -> Callable[..., Tensor]:
    """A gradient in two portions: reentrant checkpoints, the layer in both."""

    def forward(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        x = checkpoint(model, x, use_reentrant=True)
        return checkpoint(model, x, use_reentrant=True)

    return forward


def test_portions_are_learned() -> None:
    model = layers()
    bench = same(model, [twice(model), twice(model)])
    assert bench.early
    assert same(model, [twice(model), twice(model), model]).early == []


def test_a_portion_after_sending_is_refused() -> None:
    model = layers()
    bench = Bench(model)
    bench.row(model)
    with pytest.raises(
        ConfigError, match=r"'\d.\w+' came in 2 portions.*overlap=False"
    ):
        bench.row(twice(model))
    bench.writer.close()


def test_a_backward_inside_the_loss_function() -> None:
    model = layers()

    def forward(x: Tensor) -> Tensor:
        model(x).sum().backward()
        return model(x)

    assert same(model, [model, forward]).early == []
    assert same(model, [forward, model]).early


def test_hooks_of_the_user() -> None:
    """Those that come before ours are seen; after one behind ours, buckets wait."""
    model = layers()

    def clamp(p: Tensor) -> None:
        p.grad.clamp_(-0.01, 0.01)

    def clip(module: nn.Module) -> None:
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(clamp)

    assert same(model, [model, model], clip).early
    model = layers()
    early, late = Bench(model), Bench(model, overlap=False)
    early.row(model)
    handles = [p.register_post_accumulate_grad_hook(clamp) for p in model.parameters()]
    assert torch.equal(early.row(model), late.row(model))
    assert early.early == []
    for handle in handles:
        handle.remove()
    assert torch.equal(early.row(model), late.row(model))
    assert early.early


def test_one_hook_per_bucket() -> None:
    """Counted: after the pass that learns, a bucket has one hook at most."""
    model = layers()
    bench = Bench(model)
    bench.row(model)
    bench.row(model)
    hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    assert hooks <= len(bench.layout.bucket_starts) - 1


def test_gradients_that_are_there_before_the_backward() -> None:
    """They are added to, as in an accumulation; some get no further portion."""
    model = layers()
    skip = lambda x: model[3](model[0](x))  # noqa: E731
    early, late = Bench(model), Bench(model, overlap=False)
    for forward in (model, model, skip):
        rows = []
        for bench in (early, late):
            model(X).square().sum().backward()
            rows.append(bench.row(forward))
        assert torch.equal(*rows)
    assert early.early == []


def test_no_bucket_can_be_complete_before_the_end() -> None:
    """All buckets hold a part of the tail, so nothing closes one."""
    model, bench = nn.Linear(WIDTH, 1, bias=False), Bench(layers())
    order = ArrivalOrder(list(model.parameters()), [[], []], bench.bucket_ready)
    for learned in (False, True, True):
        order.begin()
        assert order.backward_begins() is learned
        model(X).sum().backward()
        order.end()
        model.weight.grad = None
    assert bench.sent == []


def test_another_order_than_learned() -> None:
    """Layers run in turned order: equal bits, and the order is learned again."""
    model = layers()
    turned = lambda x: model[0](model[1](model[2](model[3](x))))  # noqa: E731
    bench = same(model, [model, model, turned, turned, turned, turned])
    assert len(bench.early) >= bench.whole() - 1


def test_a_gradient_that_is_changed_after_it_was_encoded() -> None:
    """One of whose buckets the last still waits for the neighbour's gradient."""
    model = layers()
    bench = Bench(model)
    bench.row(model)

    def change(g: Tensor) -> Tensor:
        for p in model[3].parameters():
            if p.grad is not None:
                p.grad.mul_(2)
        return g

    model[2].bias.register_hook(change)
    model[2].weight.register_hook(change)
    with pytest.raises(ConfigError, match=r"'3\.\w+'.*overlap=False"):
        bench.row(model)


def test_nothing_and_closing() -> None:
    model = layers()
    bench = Bench(model)
    out, other = torch.empty(bench.layout.count), torch.ones(bench.layout.count)
    bench.writer.nothing(Leaf(out, 0.0, [other], bench, early=True))
    assert torch.equal(out, other)
    assert bench.sent == list(range(len(bench.layout.bucket_starts) - 1))
    bench.writer.close()
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_listener_ends_the_pass_before_a_bad_bucket_is_sent() -> None:
    model = layers()
    bench = Bench(model)
    bench.row(model)
    assert bench.checked == [True] * len(bench.sent)
    bench.strict = True
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ArithmeticError):
        bench.row(model)
    assert len(bench.checked) == len(bench.sent) + 1
    assert bench.checked[-1] is False
    bench.writer.abort()


def test_a_row_that_is_wanted_as_a_whole() -> None:
    """Its buckets are not announced, only checked, and the bits are the same."""
    for passes in (1, 2):
        model = layers()
        early, whole = Bench(model), Bench(model, overlap=False)
        for _ in range(passes):
            want = early.row(model)
        out = torch.empty_like(want)
        whole.writer.begin(Leaf(out, 0.3, (), whole))
        model(X).square().sum().backward()
        whole.writer.finish(1.5)
        assert torch.equal(out, want)
        assert whole.sent == []
        assert whole.checked == [True]


def test_an_aborted_pass_leaves_nothing_behind() -> None:
    model = layers()
    bench = Bench(model)
    want = bench.row(model)
    bench.writer.begin(Leaf(torch.empty_like(want), 0.3, (), bench, early=True))
    bench.writer.backward_begins()
    bench.writer.abort()
    bench.sent = []
    model(X).square().sum().backward()  # the user's own
    assert bench.sent == []
    for p in model.parameters():
        p.grad = None
    assert torch.equal(bench.row(model), want)
