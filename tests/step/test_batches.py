"""A loss function that fails with a batch unlike the ones before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from codedgrad import ConfigError, codes
from codedgrad.errors import DataError
from codedgrad.step.loss import Batches
from codedgrad.step.pieces import Trials

PAIR = (torch.ones(2), torch.ones(2))


def product(x: Any, y: Any) -> Any:
    return x @ y


def test_the_words_lead_to_the_batch() -> None:
    batches = Batches()
    with pytest.raises(TypeError):  # the first one may be what is wrong
        batches.call(product, (1, "a"))
    assert batches.call(product, PAIR) == 2.0
    with pytest.raises(DataError, match=r"\(dict of x, y\), and with \(Tensor, Tensor"):
        batches.call(product, ({"x": 1, "y": 2},))
    with pytest.raises(RuntimeError, match="size"):  # the batch is made as before
        batches.call(product, (torch.ones(2), torch.ones(3)))


def test_what_we_refuse_ourselves_stays_as_it_is() -> None:
    def refuses(*_: Any) -> Any:
        raise ConfigError("no")

    batches = Batches()
    batches.call(product, PAIR)
    with pytest.raises(ConfigError, match=r"^no$"):
        batches.call(refuses, (1,))


def test_a_piece_that_fails_so_is_given_up() -> None:
    code = codes.spread(2, micro=4)
    batches = Batches()
    batches.call(product, PAIR)
    with pytest.raises(DataError) as raised:
        batches.call(product, (PAIR,))
    assert Trials(code, whole=True).failed(0, raised.value)
    assert not Trials(code, whole=True).failed(0, DataError("unreadable"))
