"""Which models are trained by codedgrad at this moment, in this process.

Only weak references are kept: a CodedGradient that nobody holds does not count.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from codedgrad.step.subject import Subject

_subjects: weakref.WeakSet[Subject] = weakref.WeakSet()
_guarding: list[Any] = []  # the hook on all optimizers, once there is one


def subjects() -> list[Subject]:
    """Returns the subjects of all live payloads, in the order of their making."""
    return sorted(_subjects, key=lambda subject: subject.number)


def check(model: torch.nn.Module) -> None:
    """Refuses a model that is live already.

    Raises:
        ConfigError: it is.
    """
    if any(subject.model is model for subject in _subjects):
        raise ConfigError(
            f"this {type(model).__name__} is trained by a CodedGradient already, whose "
            f"hooks are on it; call its close() first, or use `with "
            f"CodedGradient(model) as coded:`"
        )


def enter(subject: Subject) -> None:
    """Counts a subject as live until `leave`, or until nobody holds it."""
    if not _guarding:
        _guarding.append(register_optimizer_step_pre_hook(_before_step))
    _subjects.add(subject)


def leave(subject: Subject) -> None:
    """Counts a subject as live no more."""
    _subjects.discard(subject)


def _before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Refuses an optimizer's step with gradients that no exchange has brought.

    Raises:
        ConfigError: beside parameters of a payload the optimizer holds one with a
            gradient that is in no payload, so that each worker has its own.
    """
    known = subjects()
    inside: set[int] = set().union(*(s.inside for s in known))
    ignored: set[int] = set().union(*(s.ignored for s in known))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    outside = [p for p in held if id(p) not in inside]
    if len(outside) == len(held):
        return
    for p in outside:
        if not p.requires_grad or p.grad is None or id(p) in ignored:
            continue  # what is frozen gets no gradient from a pass
        if p.grad.is_sparse or bool(p.grad.any()):
            raise ConfigError(
                f"the optimizer is about to change {name_of(p)} by a gradient that was "
                f"not exchanged, so it would differ between workers; "
                f"{REMEDY}"
            )


def name_of(tensor: torch.Tensor) -> str:
    """Returns what to call a tensor in a message: its name, if a live model has it."""
    for subject in subjects():
        if not subject.same_tensors():
            subject.refresh()
        for place in subject.parameters:
            if place.tensor() is tensor:
                return f"the parameter {place.name!r} of {subject.title}"
    return f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype}"


REMEDY = (
    "let it belong to the model: CodedGradient(model, also=[module]); or, if it is not "
    "to be trained here, requires_grad_(False), or detach() what it gives to the loss. "
    "Parameters are unfrozen and replaced between the steps, not in the loss function"
)
