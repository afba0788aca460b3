"""Which models are trained by codedgrad at this moment, in this process.

Only weak references are kept: a CodedGradient that nobody holds does not count.
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from codedgrad.errors import ConfigError
from codedgrad.step.strangers import refuse_wrapped_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from codedgrad.step.subject import Subject

log = logging.getLogger("codedgrad")

_subjects: list[weakref.ref[Subject]] = []  # in the order of their making
_exchanged: weakref.WeakKeyDictionary[torch.optim.Optimizer, set[int]] = (
    weakref.WeakKeyDictionary()
)  # of each optimizer that is distributed, the ids of its parameters
_seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # others
_stepped: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # all that have
_looked: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # for wrappers
_told: set[tuple[str, int]] = set()  # of which others
_guarding: list[Any] = []  # the hook on all optimizers, once there is one


def subjects() -> list[Subject]:
    """Returns the subjects of all live payloads, in the order of their making."""
    return [subject for ref in _subjects if (subject := ref()) is not None]


def check(model: torch.nn.Module) -> None:
    """Refuses a model that is live already.

    Raises:
        ConfigError: it is.
    """
    named = list(model.named_parameters())
    if any(_is_exchanged(p) for _, p in named):
        gc.collect()  # an optimizer that nobody uses may be part of a cycle
    for name, p in named:
        if _is_exchanged(p):
            raise ConfigError(
                f"the gradient of {name!r} is exchanged already, by a "
                f"DistributedOptimizer; use one of the two, or call "
                f"codedgrad.hvd.detach(optimizer) first"
            )
    if any(subject.model is model for subject in subjects()):
        raise ConfigError(
            f"this {type(model).__name__} is trained by a CodedGradient already, whose "
            f"hooks are on it; call its close() first, or use `with "
            f"CodedGradient(model) as coded:`"
        )


def _is_exchanged(parameter: torch.Tensor) -> bool:
    return any(id(parameter) in theirs for theirs in _exchanged.values())


def owner_of(parameter: torch.Tensor) -> str | None:
    """Returns what to call the live model whose payload has this parameter, if any."""
    for subject in subjects():
        if id(parameter) in subject.inside:
            return subject.title
    return None


def enter(subject: Subject) -> None:
    """Counts a subject as live until `leave`, or until nobody holds it."""
    _guard()
    known = sorted({*subjects(), subject}, key=lambda one: one.number)
    _subjects[:] = map(weakref.ref, known)


def enter_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]
) -> None:
    """Notes that a drop-in exchanges these gradients, until `leave_optimizer`."""
    _guard()
    _exchanged[optimizer] = set(map(id, parameters))


def leave_optimizer(optimizer: torch.optim.Optimizer | None) -> None:
    """Notes that a drop-in has ended."""
    if optimizer is not None:
        _exchanged.pop(optimizer, None)


def _guard() -> None:
    if not _guarding:
        _guarding.append(register_optimizer_step_pre_hook(_before_step))


def leave(subject: Subject) -> bool:
    """Counts a subject as live no more; returns whether it was."""
    known = subjects()
    _subjects[:] = [weakref.ref(one) for one in known if one is not subject]
    return any(one is subject for one in known)


def check_open(subject: Subject) -> None:
    """Refuses to go on with a model whose CodedGradient is closed.

    Raises:
        ConfigError: it is.
    """
    if not any(one is subject for one in subjects()):
        raise ConfigError(
            f"the CodedGradient of {subject.title} is closed; make another one to go "
            f"on: CodedGradient(model)"
        )


def _before_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Refuses an optimizer's step with gradients that no exchange has brought.

    Raises:
        ConfigError: beside parameters of a payload the optimizer holds one with a
            gradient that is in no payload, so that each worker has its own.
    """
    _stepped.add(optimizer)
    if optimizer in _exchanged and optimizer not in _looked:
        _looked.add(optimizer)  # the model may have been wrapped since the start
        refuse_wrapped_parameters(
            [
                (f"group {i}, parameter {k}", p)
                for i, group in enumerate(optimizer.param_groups)
                for k, p in enumerate(group["params"])
            ]
        )
    if type(optimizer).__module__.startswith("horovod"):
        _check_horovods(optimizer)
    if _exchanged and optimizer not in _exchanged and optimizer not in _seen:
        _seen.add(optimizer)
        _tell_of_another(optimizer)
    known = subjects()
    if not known:
        return
    inside = known[0].inside
    if len(known) > 1:
        inside = set().union(*(s.inside for s in known))
    ignored: set[int] = set().union(*(s.ignored for s in known))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if inside.issuperset(map(id, held)):
        return
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


def optimizers_of(subject: Subject) -> list[torch.optim.Optimizer]:
    """Returns the optimizers that have made steps with parameters of this model."""
    own = {id(place.tensor()) for place in subject.parameters}
    return [
        optimizer
        for optimizer in _stepped
        if not own.isdisjoint(
            id(p) for group in optimizer.param_groups for p in group["params"]
        )
    ]


def refuse_horovods(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer that `horovod.torch` has made distributed.

    Raises:
        ConfigError: it is one.
    """
    if type(optimizer).__module__.startswith("horovod"):
        raise ConfigError(
            f"this {type(optimizer).__name__} is a DistributedOptimizer of "
            f"horovod.torch, which exchanges the gradients as well; leave that one "
            f"out, or codedgrad"
        )


def _check_horovods(optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimizer of Horovod's if it has parameters of a payload."""
    ours: set[int] = set().union(*(s.inside for s in subjects()), *_exchanged.values())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not ours.isdisjoint(map(id, held)):
        refuse_horovods(optimizer)


def _tell_of_another(optimizer: torch.optim.Optimizer) -> None:
    """Warns of an optimizer that is not distributed, beside one that is."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    theirs: set[int] = set().union(
        *_exchanged.values(), *(s.inside for s in subjects())
    )
    local = [p for p in held if p.grad is not None and id(p) not in theirs]
    kind = type(optimizer).__name__, len(local)
    if local and kind not in _told:
        _told.add(kind)
        log.warning(
            "a %s changes %d parameter(s) by gradients of this worker alone, since it "
            "is not distributed: they will differ between the workers. If they are to "
            "be the same, make it a codedgrad.DistributedOptimizer, too",
            *kind,
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
