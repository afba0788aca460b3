"""What a model answers, logits or numbers, and what a stand-in's answer loses to it.

A loss is between 0 and 1. Of logits it is 1 where the largest one is another, else 0.
Of numbers it is the squared error over the variance of the model's answers, at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codedgrad.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from typing_extensions import Self

KINDS = ("logits", "numbers")
_TEMPERATURE = 2.0  # of distillation (Hinton, Vinyals and Dean, 2015)
_GUESS = 0.1  # weight of the guess of an answer's own loss
_LEAST = 1e-6  # under a logarithm
_SQUARES = 0.02  # weight of the squared error of centred logits beside the divergence


@dataclass(frozen=True)
class Outputs:
    """What the answers of a model are.

    Attributes:
        kind: "logits" or "numbers".
        width: how many of them a query has.
        flat: answers have no second dimension, [queries].
        variance: mean variance of the model's answers, which scales the loss of
            numbers.
    """

    kind: str
    width: int
    flat: bool
    variance: float

    @classmethod
    def of(cls, answers: Any, kind: str | None = None) -> Self:
        """Returns what these answers of a model are.

        Args:
            answers: the model's, to many queries.
            kind: "logits" or "numbers"; None: logits where a query has more than one.

        Raises:
            ConfigError: they are neither.
            NonFiniteError: a number is NaN or infinite.
        """
        check(answers)
        if kind not in (None, *KINDS):
            raise ConfigError(f"outputs must be one of {KINDS}, got {kind!r}")
        flat = answers.dim() == 1
        width = 1 if flat else answers.shape[1]
        kind = kind or ("logits" if width > 1 else "numbers")
        if kind == "logits" and width < 2:
            raise ConfigError(
                "logits need two classes or more, the model gives one number a query; "
                'say outputs="numbers"'
            )
        if not bool(answers.isfinite().all()):
            bad = int((~answers.reshape(len(answers), -1).isfinite()).any(1).sum())
            raise NonFiniteError(
                f"the model answers {bad} of {len(answers)} samples with NaN or "
                f"infinity, so no stand-in can be distilled from it"
            )
        variance = float(answers.double().var(0, unbiased=False).mean())
        return cls(kind, width, flat, max(variance, 1e-12))

    def rows(self, answers: Tensor) -> Tensor:
        """Returns answers as [queries, width]."""
        return answers[:, None] if self.flat else answers

    def shaped(self, rows: Tensor) -> Tensor:
        """Returns rows in the shape of the model's answers."""
        return rows[:, 0] if self.flat else rows

    def losses(self, values: Tensor, exact: Tensor) -> Tensor:
        """Returns the loss of each answer, float64 on the CPU.

        Args:
            values: the stand-in's, as rows.
            exact: the model's, as rows.
        """
        if self.kind == "logits":
            lost = (values.argmax(1) != exact.argmax(1)).double()
        else:
            errors = (values.double() - exact.double()).square().mean(1)
            lost = (errors / self.variance).clamp(max=1.0).nan_to_num(nan=1.0)
        return lost.cpu()

    def distance(self, rows: Tensor, exact: Tensor) -> Tensor:
        """Returns what distillation minimises, as a scalar.

        Args:
            rows: answers of the imitation and, in the last column, its own guess of
                their loss: a logit of being wrong, or the log of the squared error.
            exact: the model's answers.
        """
        values, guess = rows[:, :-1], rows[:, -1]
        if self.kind == "numbers":
            errors = (values - exact).square().mean(1) / self.variance
            known = errors.detach() + _LEAST
            guessed = (known * torch.exp(-guess) + guess).mean()
            return errors.mean() + _GUESS * guessed
        wrong = (values.argmax(1) != exact.argmax(1)).to(guess.dtype)
        guessed = F.binary_cross_entropy_with_logits(guess, wrong)
        return divergence(values, exact) + _GUESS * guessed

    def signs(self, rows: Tensor) -> Tensor:
        """Returns what a doubt is computed from, one row of signs an answer.

        Of logits these are margin, log-probability of any other class, entropy, and the
        guess of `distance`; of numbers the size of the answer and the guess.
        """
        values, guess = rows[:, :-1], rows[:, -1]
        if self.kind == "numbers":
            size = values.square().mean(1) / self.variance
            return torch.stack([(size + _LEAST).log(), guess], 1)
        logs = values.log_softmax(1)
        first, second = logs.topk(2).values.unbind(1)
        other = torch.log(-torch.expm1(first.clamp(max=-1e-7)))
        entropy = (logs.exp() * logs).sum(1)
        return torch.stack([first - second, other, entropy, guess], 1)


def divergence(values: Tensor, exact: Tensor) -> Tensor:
    """Returns how far logits are from the model's, [..., classes]: a scalar.

    It is the Kullback-Leibler divergence at a temperature, and a little of the squared
    error of centred logits, which orders what the softmax cannot see.
    """
    t = _TEMPERATURE
    soft = F.kl_div(
        F.log_softmax(values.flatten(0, -2) / t, 1),
        F.log_softmax(exact.flatten(0, -2) / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    centred = values - values.mean(-1, keepdim=True)
    wanted = exact - exact.mean(-1, keepdim=True)
    return soft * t * t + _SQUARES * F.mse_loss(centred, wanted)


def check(answers: Any) -> None:
    """Refuses answers that are neither logits nor numbers, one row a query.

    Raises:
        ConfigError: they are something else.
    """
    remedy = (
        "; wrap the model in a module that returns one row of logits or numbers a query"
    )
    if not isinstance(answers, Tensor):
        raise ConfigError(
            f"a stand-in imitates a tensor of logits or numbers, the model returns "
            f"{type(answers).__qualname__}{remedy}"
        )
    if not answers.is_floating_point():
        raise ConfigError(
            f"a stand-in imitates logits or numbers, the model returns "
            f"{answers.dtype}{remedy}"
        )
    if answers.dim() not in (1, 2) or not answers.numel():
        raise ConfigError(
            f"a stand-in imitates answers of shape [queries, width], the model returns "
            f"{tuple(answers.shape)}{remedy}"
        )
