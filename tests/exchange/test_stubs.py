"""The stub of the C++ engine's module says what the module has."""

from __future__ import annotations

import ast
import inspect

import stubs

from codedgrad.exchange.base import Exchange
from codedgrad.exchange.engine import EngineExchange
from codedgrad.job import _engine, _mpi
from codedgrad.ops import _ops

STUB = stubs.PACKAGE / "job" / "_engine.pyi"


def test_engine() -> None:
    assert stubs.differences(_engine, STUB) == []


def test_the_transport_over_mpi() -> None:
    assert stubs.differences(_mpi, stubs.PACKAGE / "job" / "_mpi.pyi") == []


def test_kernels() -> None:
    assert stubs.differences(_ops, stubs.PACKAGE / "ops" / "_ops.pyi") == []


def test_a_drift_is_found() -> None:
    built = stubs.of_module(_engine)
    text = STUB.read_text()
    for now, other, name in (
        ("window: int = 16", "window: int", "SessionSettings.__init__"),
        ("def sockets_transport", "def sockets", "sockets"),
        ("timeout_s: float", "limit_s: float", "Engine.gather"),
        ("    missing: float\n", "", "Settled.missing"),
    ):
        drifted = stubs.of_stub(ast.parse(text.replace(now, other)).body)
        found = stubs.compare("", built, drifted)
        assert any(line.startswith(f"{name}:") for line in found), name


def test_the_engines_exchange_has_all_that_a_step_may_call() -> None:
    for name, asked in vars(Exchange).items():
        if name.startswith("_"):
            continue
        assert asked.__doc__, f"{name} does not say when it is called"
        here = inspect.signature(getattr(EngineExchange, name)).parameters
        assert list(here) == list(inspect.signature(asked).parameters), name
