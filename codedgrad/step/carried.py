"""The state that a worker that comes back gets from another one, between two steps.

It is all that a training has after a step: parameters and buffers with their gradients,
what the user tracks (optimizer, schedule), the place in the data, the number of the
step, and the generators of random numbers. It is written and read as a checkpoint is,
so that reading it executes nothing.
"""

from __future__ import annotations

import io
import pickle
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from codedgrad.errors import ConfigError
from codedgrad.step import live, same

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.optim import Optimizer

    from codedgrad.data import Source
    from codedgrad.step.subject import Subject


_NUMPY = "numpy's, by codedgrad"  # the key of what is one of numpy's arrays or numbers


def check_tracked(tracked: Mapping[str, Any]) -> None:
    """Refuse objects that cannot be carried.

    Raises:
        ConfigError: one has no `state_dict` or no `load_state_dict`.
    """
    for name, thing in tracked.items():
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(thing, method, None)):
                raise ConfigError(
                    f"track({name}=...) takes what has a state_dict() and a "
                    f"load_state_dict(state), got a {type(thing).__name__}, which has "
                    f"no {method}"
                )


def why_not(subject: Subject, tracked: Mapping[str, Any]) -> str:
    """Return why the state of a training cannot be carried; "": it can."""
    things = list(tracked.values())
    for optimizer in live.optimizers_of(subject):
        kind = type(optimizer).__name__
        if not any(_keeps(thing, optimizer) for thing in things):
            return f"its {kind} is not tracked: coded.track(optimizer=optimizer)"
        scheduled = hasattr(optimizer.step, "_wrapped_by_lr_sched")
        if scheduled and not any(_schedules(thing, optimizer) for thing in things):
            return (
                f"the schedule of its {kind} is not tracked: coded.track(schedule=...)"
            )
    for module in subject.modules:
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            return (
                f"a {type(module).__name__} of the model has extra state "
                f"(get_extra_state), which is not carried over yet"
            )
    return ""


def _keeps(thing: Any, optimizer: Optimizer) -> bool:
    wraps = not isinstance(thing, LRScheduler)
    return thing is optimizer or (wraps and getattr(thing, "optimizer", 0) is optimizer)


def _schedules(thing: Any, optimizer: Optimizer) -> bool:
    return thing is not optimizer and getattr(thing, "optimizer", 0) is optimizer


def pack(
    subject: Subject, tracked: Mapping[str, Any], source: Source, coded: dict[str, Any]
) -> dict[str, Any]:
    """Return the state of this worker.

    Args:
        subject: the model, as `refresh` has found it.
        tracked: what the user tracks, by name.
        source: of the data.
        coded: the state of the CodedGradient.
    """
    tensors = _tensors(subject)
    return {
        "tensors": {name: tensor.detach() for name, tensor in tensors.items()},
        "grads": {n: t.grad for n, t in tensors.items() if t.grad is not None},
        "caches": sorted(subject.caches),
        "training": [module.training for module in subject.modules],
        "tracked": {name: thing.state_dict() for name, thing in tracked.items()},
        "source": source.state_dict(),
        "coded": coded,
        "random": _generators(),
    }


def encode(state: dict[str, Any]) -> bytes:
    """Return a state as bytes."""
    file = io.BytesIO()
    torch.save(_plain(state), file)
    return file.getvalue()


def decode(data: bytearray) -> dict[str, Any]:
    """Return the state that these bytes are.

    Raises:
        ConfigError: it holds more than tensors, numbers, texts and containers of them.
    """
    try:
        found = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        told = next((line for line in lines if "Unsupported" in line), lines[0])
        raise ConfigError(
            f"what is tracked holds something else than tensors, numbers, texts and "
            f"containers of these ({told[:200]})"
        ) from None
    return dict(_restored(found))


def load(
    state: dict[str, Any], subject: Subject, tracked: Mapping[str, Any], source: Source
) -> None:
    """Take a state over.

    Raises:
        ConfigError: it is of another model, or of other things than are tracked here.
    """
    subject.refresh()
    subject.caches.update(state["caches"])
    mine, theirs = _tensors(subject), state["tensors"]
    _compare("tensors", list(mine), list(theirs))
    for name, tensor in mine.items():
        here, there = _kind(tensor), _kind(theirs[name])
        if here != there:
            raise ConfigError(f"{name} is {here} here, and {there} there")
    if len(state["training"]) != len(subject.modules):
        raise ConfigError("the model has another number of modules here than there")
    _compare("tracked things", list(tracked), list(state["tracked"]))
    for name, thing in tracked.items():
        here, there = thing.state_dict(), state["tracked"][name]
        if isinstance(here, dict) and isinstance(there, dict):
            _compare(f"entries of {name}", list(here), list(there))
    put(state, subject, tracked)
    for name, thing in tracked.items():
        same.check(name, thing.state_dict(), state["tracked"][name])
    source.load_state_dict(state["source"])


def put(state: dict[str, Any], subject: Subject, tracked: Mapping[str, Any]) -> None:
    """Put what a state holds, beside the place in the data, where it belongs."""
    with torch.no_grad():
        for name, tensor in _tensors(subject).items():
            tensor.copy_(state["tensors"][name])
            grad = state["grads"].get(name)
            tensor.grad = None if grad is None else grad.to(tensor.device)
    for module, training in zip(subject.modules, state["training"], strict=True):
        module.training = training
    for name, thing in tracked.items():
        thing.load_state_dict(state["tracked"][name])
    _set_generators(state["random"])


def _plain(value: Any) -> Any:
    """Return a state with torch's tensors in place of numpy's arrays and numbers.

    torch reads back nothing else, for safety; `_restored` makes numpy's of them again.
    Counters of a schedule stay counters.
    """
    if isinstance(value, dict):
        items = {_key(key): _plain(item) for key, item in value.items()}
        return Counter(items) if isinstance(value, Counter) else items
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        raw = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
        kind = "number" if isinstance(value, np.generic) else "array"
        if array.dtype.hasobject or array.dtype.names:
            raise ConfigError(f"an array of {array.dtype} cannot be carried")
        return {_NUMPY: kind, "dtype": array.dtype.str, "shape": array.shape, "": raw}
    return value


def _key(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def _restored(value: Any) -> Any:
    """Return what `_plain` was given, but for the kinds of dictionaries."""
    if isinstance(value, dict):
        if _NUMPY in value:
            data = value[""].numpy().tobytes()
            array = np.frombuffer(data, value["dtype"]).reshape(value["shape"]).copy()
            return array[()] if value[_NUMPY] == "number" else array
        items = {key: _restored(item) for key, item in value.items()}
        return Counter(items) if isinstance(value, Counter) else items
    if type(value) in (list, tuple):
        return type(value)(map(_restored, value))
    return value


def _tensors(subject: Subject) -> dict[str, Tensor]:
    """Return all tensors of a model by name, each once."""
    return {
        place.name: tensor
        for place in subject.places()
        if (tensor := place.tensor()) is not None and place.name not in subject.caches
    }


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def _compare(what: str, here: list[Any], there: list[Any]) -> None:
    if set(here) != set(there):
        more = sorted(map(str, set(here) - set(there)))
        fewer = sorted(map(str, set(there) - set(here)))
        raise ConfigError(
            f"the {what} differ: {more or 'none'} only here, {fewer or 'none'} only "
            f"there"
        )


def _generators() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    drawn: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, keys, *others = drawn
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *others],
        "python": [version, list(numbers), gauss],
    }


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, *others = state["numpy"]
    every = (name, keys.numpy().astype(np.uint32), *others)
    np.random.set_state(every)  # noqa: NPY002 (user code draws from it)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
