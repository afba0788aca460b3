"""Copies between a device and the host: in order, never read early, never freed."""

from __future__ import annotations

import gc
import time
import weakref

import torch
from late_device import LateDevice

from codedgrad.row.devices import Staging

CPU = torch.device("cpu")
COUNT = 64


def staging(device: LateDevice) -> Staging:
    return Staging(device, CPU, COUNT, torch.float32)


def test_a_row_is_there_when_its_event_is_done() -> None:
    device = LateDevice(0.005)
    stage = staging(device)
    row, host = stage.row(), torch.empty(COUNT)
    row.copy_(torch.arange(COUNT))
    handles = [stage.out(row, host, b, b + 16) for b in range(0, COUNT, 16)]
    events = [device._events[h - 1] for h in handles]
    while not device.done(events[0]):
        time.sleep(1e-4)
    assert torch.equal(host[:16], torch.arange(16.0))
    stage.drain()
    assert all(device.done(e) for e in events)
    assert torch.equal(host, torch.arange(float(COUNT)))


def test_what_is_copied_is_held_until_it_is() -> None:
    device = LateDevice(0.02)
    stage = staging(device)
    seen = []
    for i in range(20):  # each dropped at once; its memory would be the next one's
        row, host = stage.row().fill_(i), torch.empty(COUNT)
        stage.out(row, host, 0, COUNT)
        seen.append(host)
        del row
    assert len(stage._held) > 1
    stage.drain()
    assert [float(h[0]) for h in seen] == list(range(20))
    assert not stage._held


def test_a_sum_comes_before_what_is_computed_with_it() -> None:
    device = LateDevice(0.01)
    stage = staging(device)
    for i in range(5):
        host = torch.full((COUNT,), float(i))
        total = stage.back(host)
        assert torch.equal(total + 1, host + 1)


def test_more_copies_than_events() -> None:
    device = LateDevice(0.0005)
    stage = staging(device)
    row, hosts = stage.row().fill_(1.0), []
    for _ in range(200):
        hosts.append(torch.empty(COUNT))
        stage.out(row, hosts[-1], 0, COUNT)
    stage.drain()
    assert all(bool((h == 1).all()) for h in hosts)


def test_the_tail_of_a_sum_comes_to_the_host() -> None:
    stage = staging(LateDevice(0.005))
    values = torch.arange(3.0)
    tail = stage.to_host(values)
    assert torch.equal(tail, values)
    assert tail.data_ptr() != values.data_ptr()


def test_events_and_copies_outlive_a_model_that_is_dropped() -> None:
    """The engine may still ask for its events, and its rows are still being sent."""
    device = LateDevice(0.3)
    stage = staging(device)
    made = len(device._events)
    host = torch.empty(COUNT)
    handle = stage.out(stage.row().fill_(7.0), host, 0, COUNT)
    event = weakref.ref(device._events[handle - 1])
    del stage
    gc.collect()
    other = staging(device)  # the copy is under way, so its events are not taken over
    assert len(device._events) == 2 * made
    seen = []
    for i in range(4):  # other rows, in memory that the dropped one must still hold
        seen.append(torch.empty(COUNT))
        other.out(other.row().fill_(i), seen[-1], 0, COUNT)
    other.drain()
    found = event()
    assert found is not None
    while not device.done(found):
        time.sleep(1e-4)
    assert torch.equal(host, torch.full((COUNT,), 7.0))
    third = staging(device)  # takes over what is done
    assert len(device._events) == 2 * made
    assert third._events[0] is device._events[0]
