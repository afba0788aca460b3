"""The loops in C++ over many objects say and do what those in Python do."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from codedgrad.ops import objects
from codedgrad.ops.objects import Marks, Places, quick_look

if TYPE_CHECKING:
    from collections.abc import Callable

# torch calls quantised tensors and TorchScript deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")
NAMES = (
    "values_of",
    "values_are",
    "items_are",
    "read",
    "reads",
    "all_none",
    "filled",
    "assign",
    "assign_all",
)


class Tagged(Tensor):
    """A subclass, whose attributes go through `__torch_function__`."""


class Stubborn:
    """Its attributes come from a __getattribute__ of its own, or from a property."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def __getattribute__(self, name: str) -> Any:
        if name == "training":
            return not object.__getattribute__(self, "training")
        return object.__getattribute__(self, name)


class Slotted:
    """It has no dictionary."""

    __slots__ = ("training",)

    def __init__(self, training: bool) -> None:
        self.training = training


class Asking(nn.Module):
    """It has `training` as a property."""

    @property
    def training(self) -> bool:  # type: ignore[override]
        return True

    @training.setter
    def training(self, value: bool) -> None:
        pass


def tensors() -> list[Tensor]:
    parameter = nn.Parameter(torch.ones(2, 3))
    return [
        parameter,
        torch.zeros(4, dtype=torch.float64),
        torch.ones(3, 2).T,
        torch.tensor(3),
        torch.ones(2, dtype=torch.bfloat16)[::2],
        torch.ones(2).as_subclass(Tagged),
        torch.ones(0, 3),
        parameter.detach(),
    ]


def odd() -> list[Tensor]:
    with torch.inference_mode():
        inference = torch.ones(2)
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    return [
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
        quantised,
        inference,
        torch.ones(2).as_subclass(Tagged),
    ]


def both(name: str) -> list[Callable[..., Any]]:
    return [getattr(objects, name), getattr(objects, f"{name}_reference")]


def test_the_module_is_compiled() -> None:
    for name in NAMES:
        fast, slow = both(name)
        assert fast is not slow, name


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_version", False),
        ("requires_grad", False),
        ("shape", False),
        ("dtype", False),
        ("grad", False),
        ("data_ptr", True),
        ("numel", True),
        ("stride", True),
        ("is_contiguous", True),
    ],
)
def test_attributes_of_tensors_are_read(name: str, call: bool) -> None:
    held = tensors()
    held[0].grad = torch.ones(2, 3)
    fast, slow = (read(held, name, call) for read in both("read"))
    if name != "grad":
        assert fast == slow
        assert all(r(held, name, call, slow) for r in both("reads"))
        other = [*slow[:-1], object()]
        assert not any(r(held, name, call, other) for r in both("reads"))
        assert not any(r(held, name, call, slow[:-1]) for r in both("reads"))
    else:
        assert all(map(lambda a, b: a is b, fast, slow))


def test_attributes_of_modules_are_read() -> None:
    modules: list[Any] = [nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1).eval(), Asking()]
    modules += [Stubborn(True), Slotted(False), torch.jit.script(nn.ReLU())]
    modules += [Slotted(True), nn.ReLU(), Stubborn(False)]
    fast, slow = (read(modules, "training", False) for read in both("read"))
    assert fast == slow
    for read in both("read"):
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            read(modules, "nothing_of_the_kind", False)


def test_classes_that_change_between_two_looks() -> None:
    """The way to an attribute is known, and looked up again when a class changes."""

    class Base:
        pass

    class Sub(Base):
        pass

    one, other = Sub(), Sub()
    one.training, other.training = 1, 2  # type: ignore[attr-defined]

    def seen() -> list[Any]:
        found = [read([one, other], "training", False) for read in both("read")]
        assert found[0] == found[1]
        assert all(r([one, other], "training", False, found[0]) for r in both("reads"))
        return found[0]

    assert seen() == seen() == [1, 2]
    Base.training = property(lambda self: vars(self)["training"] + 10)  # type: ignore
    assert seen() == seen() == [11, 12]
    Sub.__getattribute__ = lambda self, name: (  # type: ignore[assignment]
        7 if name == "training" else object.__getattribute__(self, name)
    )
    assert seen() == seen() == [7, 7]
    del Sub.__getattribute__
    assert seen() == [11, 12]
    del Base.training  # type: ignore[attr-defined]
    assert seen() == [1, 2]
    one.__class__ = Base  # type: ignore[assignment]
    Base.training = 5  # type: ignore[attr-defined]
    del one.training  # type: ignore[attr-defined]
    assert seen() == [5, 2]


def test_a_quick_look_sees_what_single_ones_see() -> None:
    def look(model: nn.Module) -> Callable[[], bool]:
        modules, held = list(model.modules()), list(model.parameters())
        dicts = [d for m in modules for d in (m._modules, m._parameters, m._buffers)]
        holders = [m._parameters for m in modules if m._parameters]
        items = holders, ["weight"] * len(holders), [h["weight"] for h in holders]
        flags = [(modules, "training", [m.training for m in modules])]
        flags += [(held, "requires_grad", [p.requires_grad for p in held])]
        marks = [Marks(held, versions=True, addresses=True)]
        found = quick_look((dicts, objects.values_of(dicts)), items, flags, marks)
        assert found is not None
        return found

    def swapped(model: nn.Sequential) -> None:
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())

    changes: list[Callable[[Any], Any]] = [
        lambda m: m[1].eval(),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: setattr(m[0].weight, "data", torch.ones(2, 2)),
        lambda m: m[0].bias.detach().add_(1),
        lambda m: m[0].register_buffer("more", torch.ones(1)),
        lambda m: m.append(nn.ReLU()),
        swapped,
    ]
    for change in changes:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        same = look(model)
        assert same()
        change(model)
        assert not same()
        assert look(model)()
    marks = [Marks([torch.eye(2).to_sparse()], versions=True, addresses=True)]
    assert quick_look(([], []), ([], [], []), [], marks) is None


def test_many_classes_that_come_and_go() -> None:
    for number in range(200):
        kind = type("Kind", (), {"training": property(lambda _, n=number: n)})
        assert both("read")[0]([kind()], "training", False) == [number]
        del kind
        gc.collect(0)


def test_values_of_dictionaries() -> None:
    one, other = object(), object()
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    held = [{"a": one}, {}, scripted._modules, {"b": other, "c": one}]
    fast, slow = (values(held) for values in both("values_of"))
    assert len(fast) == len(slow) == 4
    plain = [held[0], held[1], held[3]]
    for values, same in zip(both("values_of"), both("values_are"), strict=True):
        now = values(plain)
        assert now == [one, other, one]
        assert same(plain, now)
        assert not same(plain, now[:-1])
        assert not same(plain, [*now, one])
        assert not same(plain, [one, one, one])
    for same in both("items_are"):
        assert same([{"a": one}, {"b": None}], ["a", "b"], [one, None])
        assert not same([{"a": one}, {"b": one}], ["a", "b"], [one, other])
        assert not same([{"a": one}, {}], ["a", "b"], [one, None])
        assert same([], [], [])


def test_attributes_are_set() -> None:
    for fill, empty, filled, none in zip(
        *map(both, ("assign", "assign_all", "filled", "all_none")), strict=True
    ):
        held = [nn.Parameter(torch.ones(2)) for _ in range(3)]
        gradients = [torch.ones(2), None, torch.zeros(2)]
        assert none(held, "grad")
        fill(held, "grad", gradients)
        assert all(p.grad is g for p, g in zip(held, gradients, strict=True))
        assert filled(held, "grad") == [True, False, True]
        assert not none(held, "grad")
        empty(held, "grad", None)
        assert [p.grad for p in held] == [None] * 3
        with pytest.raises((TypeError, RuntimeError)):
            fill(held, "grad", [torch.ones(5)] * 3)
        with pytest.raises(ValueError, match=r"shorter|as many"):
            fill(held, "grad", gradients[:2])


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda t: t.add_(1),
    "data": lambda t: setattr(t, "data", t.data.clone()),
    "type": lambda t: setattr(t, "data", t.data.half()),
    "shape, same memory": lambda t: setattr(t, "data", t.data.view(3, 2)),
    "less, same memory": lambda t: setattr(t, "data", t.data[:1]),
    "strides, same memory": lambda t: setattr(t, "data", t.data.T.contiguous().T),
}
SEEN = {
    (True, True): set(CHANGES),
    (False, True): set(CHANGES) - {"in place"},
    (False, False): {"type", "shape, same memory", "less, same memory"}
    | {"strides, same memory"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("versions", "addresses"), SEEN)
@pytest.mark.parametrize("described", [True, False])
def test_marks(
    change: str,
    versions: bool,
    addresses: bool,
    described: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not described:
        monkeypatch.setattr(objects, "EXCHANGE", False)
    held = [torch.ones(2, 3), torch.ones(2, 3), *odd(), *tensors()]
    marks = Marks(held, versions=versions, addresses=addresses)
    assert marks.same()
    before = marks.noted()
    assert marks.now() == before
    CHANGES[change](held[1])
    seen = change in SEEN[versions, addresses]
    assert marks.same() is not seen
    assert [a != b for a, b in zip(before, marks.now(), strict=True)] == [
        seen and i == 1 for i in range(len(held))
    ]
    assert marks.noted() == before
    marks.renew_one(1)
    assert marks.same()
    CHANGES[change](held[0])
    marks.renew()
    assert marks.same()


def test_a_tensor_that_can_be_described_no_more() -> None:
    held = [torch.ones(2), torch.ones(3)]
    marks = Marks(held, versions=True, addresses=True)
    held[0].data = torch.ones(2, dtype=torch.complex64).conj()
    assert not marks.same()
    marks.renew()
    assert marks.same()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_lie_in_the_vector_and_keep_it(dtype: torch.dtype) -> None:
    flat = torch.arange(20, dtype=dtype)
    places = [
        ((2, 3), (3, 1), 4),
        ((), (), 1),
        ((0, 2), (2, 1), 3),
        ((3, 2), (1, 3), 0),
    ]
    views = Places(places).views(flat)
    for view, place in zip(views, places, strict=True):
        want = flat.as_strided(*place)
        assert torch.equal(view, want)
        assert view.stride() == want.stride()
        assert view.numel() == 0 or view.data_ptr() == want.data_ptr()
    views[0].zero_()
    assert flat[4:10].eq(0).all()
    gone = weakref.ref(flat)
    del flat, want
    gc.collect()
    assert gone() is not None or not objects.EXCHANGE
    kept = views[3].clone()
    del views[:3], view
    assert torch.equal(views[0], kept)
    views.clear()
    gc.collect()
    assert gone() is None


def test_views_without_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "EXCHANGE", False)
    (view,) = Places([((2, 2), (1, 2), 1)]).views(torch.arange(6.0))
    assert view.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_nothing_is_kept_alive() -> None:
    held = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    gone = [weakref.ref(p) for p in held]
    for name, call in itertools.product(("requires_grad",), (False,)):
        objects.read(held, name, call)
    marks = objects.Marks(held, versions=True, addresses=True)
    assert marks.same()
    del held, marks
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
