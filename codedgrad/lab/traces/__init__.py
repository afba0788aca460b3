"""Logs of straggling: read one, fit a profile to it, draw others from that."""

from __future__ import annotations

from codedgrad.lab.traces.log import Log, from_rows
from codedgrad.lab.traces.profile import Profile, fit
from codedgrad.lab.traces.read import read

__all__ = ["Log", "Profile", "fit", "from_rows", "read"]
