"""Logs of straggling: read or record one, fit a profile to it, sample from that."""

from __future__ import annotations

from codedgrad.lab.traces.log import Log, from_rows
from codedgrad.lab.traces.profile import Profile, fit
from codedgrad.lab.traces.read import read
from codedgrad.monitor.recorder import Recorder

__all__ = ["Log", "Profile", "Recorder", "fit", "from_rows", "read"]
