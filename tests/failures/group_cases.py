"""Cases of job.py with local groups: two groups of two processes."""

from __future__ import annotations

import torch
from torch import nn
from training import DATA, criterion, last, train

import codedgrad
from codedgrad import codes


def unequal_groups() -> None:
    train(nn.Linear(4, 3), local_group=2)


def different_groups() -> None:
    train(nn.Linear(4, 3), local_group="node" if last() else 2)


def groups_of_some() -> None:
    train(nn.Linear(4, 3), local_group=None if last() else 2)


def code_of_another_number_of_groups() -> None:
    train(nn.Linear(4, 3), code=codes.spread(codedgrad.size()), local_group=2)


def an_approximate_policy_in_groups() -> None:
    policy = codedgrad.approximate(0.1)
    train(nn.Linear(4, 3), local_group=2, policy=policy)


def exception_in_a_group(rank: int) -> None:
    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        if codedgrad.rank() == rank and coded.step == 1:
            raise KeyError("no such token: 'xyzzy'")
        return x

    train(nn.Linear(4, 3), code=codes.uncoded(2, micro=4), loss=loss, local_group=2)


def exception_of_a_member() -> None:
    exception_in_a_group(3)


def exception_of_a_leader() -> None:
    exception_in_a_group(2)


def overflow_in_a_group() -> None:
    """Every micro-batch is within the range of the wire, the sum of two beyond it."""

    def loss(coded: codedgrad.CodedGradient, x: torch.Tensor) -> torch.Tensor:
        return 0.0 * x + 3.2e5 * coded.model.weight.sum()

    code = codes.uncoded(2, micro=4)
    train(nn.Linear(4, 3), code=code, loss=loss, local_group=2, wire="float16")


def a_member_at_another_step() -> None:
    """One process skips a step that its leader makes."""
    model = nn.Linear(4, 3)
    coded = codedgrad.CodedGradient(model, local_group=2)
    if last():
        coded._step += 1
    for shards in coded.steps(codedgrad.ShardSampler(DATA, 24)):
        coded.backward(lambda x, y: criterion(model(x), y), shards)


def a_member_leaves() -> None:
    """One process of a group leaves while the others train on."""
    model = nn.Linear(4, 3)
    code = codes.uncoded(2, micro=4)
    coded = codedgrad.CodedGradient(model, code, local_group=2)
    for shards in coded.steps(codedgrad.ShardSampler(DATA, 24)):
        if last() and coded.step == 1:
            codedgrad.shutdown()
        coded.backward(lambda x, y: criterion(model(x), y), shards)
