"""`import bare` first: `codedgrad` is a package then, but imports nothing by itself.

For processes that need a module or two of it and not torch, whose import takes longer
than what they try.
"""

from __future__ import annotations

import importlib.util
import sys

_spec = importlib.util.find_spec("codedgrad")
assert _spec is not None
sys.modules["codedgrad"] = importlib.util.module_from_spec(_spec)
