"""The learned code for nonlinear computation: a stand-in with a calibrated doubt.

`distil` names the stages of making one; `stand_in` is what it makes, `doubt` and `gate`
say which answers may be trusted, `exits` answer from an unfinished pass.
docs/stand-in.md tells the whole.
"""

from codedgrad.inference.learned.distil import distil
from codedgrad.inference.learned.gate import GateSettings
from codedgrad.inference.learned.stand_in import StandIn
from codedgrad.inference.learned.training import Distillation

__all__ = ["Distillation", "GateSettings", "StandIn", "distil"]
