"""Random numbers and other values of a rehearsal, which leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn import functional as F

from codedgrad.step.otherwise import other_values
from codedgrad.step.steady import Steady


def attention(x: Tensor) -> Tensor:
    q = x[:, None, None]
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)


DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.2),
    "alpha": lambda x: F.alpha_dropout(x, 0.1, True),
    "path": lambda x: x.new_empty(len(x), 1).bernoulli_(0.3) * x,
    "chances": lambda x: torch.empty(len(x), 3).bernoulli_(x.detach().sigmoid()),
    "attention": attention,
    "rand": lambda x: torch.rand(len(x), 3),
    "rand_like": torch.rand_like,
    "randn": lambda x: x + torch.randn_like(x),
    "normal": lambda x: torch.normal(x.detach(), 1.0),
    "reparametrised": lambda x: Normal(x, x.exp()).rsample(),
    "randint": lambda x: torch.randint(2, 9, (len(x), 2)),
    "randint_like": lambda x: torch.randint_like(x, 4),
    "category": lambda x: Categorical(logits=x).sample(),
    "coin": lambda x: Bernoulli(logits=x).sample(),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "uniform": lambda x: torch.empty(len(x)).uniform_(-1, 1),
    "random": lambda x: torch.empty(len(x)).random_(0, 4),
    "exponential": lambda x: torch.empty_like(x).exponential_(2.0),
}


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("kind", DRAWING)
def test_a_batch_draws_what_its_pieces_draw(kind: str, drawn: bool) -> None:
    draw = DRAWING[kind]
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    state, usual = torch.get_rng_state(), draw(x)
    torch.set_rng_state(state)
    found = []
    for part in (x, x[:2], x[2:]):
        with Steady(drawn=drawn):
            found.append(draw(part))
    torch.testing.assert_close(found[0], torch.cat(found[1:]))
    assert (found[0].dtype, found[0].shape) == (usual.dtype, usual.shape)
    assert torch.equal(state, torch.get_rng_state())
    if kind == "dropout" and not drawn:
        assert torch.equal(found[0], x)


def test_a_mask_in_the_middle_masks_all_or_nothing() -> None:
    with Steady(drawn=False):
        assert not (torch.rand(4, 50) < 0.15).any()
    with Steady(drawn=True):
        mask = torch.rand(4, 50) < 0.15
    assert 0 < mask.sum() < 200
    assert torch.equal(mask[:1].expand(4, 50), mask)


@pytest.mark.parametrize("drawn", [False, True])
def test_permutations_move_all(drawn: bool) -> None:
    with Steady(drawn=drawn):
        found = torch.randperm(5), torch.rand(5).argsort(), torch.rand(5).sort(0)[1]
        tied = torch.ones(2, 3).argsort(dim=-1, descending=True)
    for order in found:
        assert order.tolist() == [4, 0, 1, 2, 3]
    assert sorted(tied[1].tolist()) == [0, 1, 2]
    with Steady(drawn=drawn):
        assert torch.tensor([3.0, 1.0, 2.0]).argsort().tolist() == [1, 2, 0]


def test_numbers_that_are_not_known_are_drawn() -> None:
    state = torch.get_rng_state()
    with Steady(drawn=False):
        F.rrelu(torch.ones(3).neg(), training=True)
    assert not torch.equal(state, torch.get_rng_state())


def test_other_values_are_taken_back() -> None:
    """Also zeros, of which a low-rank update begins, and what shares its memory."""
    shared = torch.randn(4, 4)
    parameters = [
        *nn.Linear(3, 2).parameters(),
        nn.Parameter(torch.zeros(2, 4)),
        nn.Parameter(torch.tensor([0.0, -0.0, float("nan"), 1e-42])),
        nn.Parameter(torch.randn(3, 5).T),
        nn.Parameter(torch.randn(5).bfloat16()),
        nn.Parameter(torch.tensor(2.0)),
        nn.Parameter(torch.empty(0)),
        nn.Parameter(shared),
        nn.Parameter(shared[1:3]),
    ]
    kinds = [(p.untyped_storage().data_ptr(), p._version) for p in parameters]
    bits = [p.detach().clone().flatten().view(torch.uint8) for p in parameters]

    def inside() -> None:
        with other_values(parameters):
            for p, b in zip(parameters, bits, strict=True):
                same = torch.equal(p.detach().flatten().view(torch.uint8), b)
                assert same == (p.numel() == 0)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        inside()
    for p, b in zip(parameters, bits, strict=True):
        assert torch.equal(p.detach().flatten().view(torch.uint8), b)
    assert kinds == [(p.untyped_storage().data_ptr(), p._version) for p in parameters]
