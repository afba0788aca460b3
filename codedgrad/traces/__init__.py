"""Logs of straggling: read, record, fit a profile, sample from it."""

from __future__ import annotations

from codedgrad.traces.log import Log, from_rows
from codedgrad.traces.profile import Profile, fit
from codedgrad.traces.read import read
from codedgrad.traces.record import Recorder

__all__ = ["Log", "Profile", "Recorder", "fit", "from_rows", "read"]
