"""Queries are answered over the workers of a job under a deadline: `CodedPredictor`.

`predictor` is what a user calls. `policy` says when the stand-in may answer, `query` is
one query from its coming to its answer, `hands` computes passes, `served` is the model
that they run, `post` sends and hears messages, `hedging` says whom to ask for help and
when, and `seen` keeps the times from which that follows. docs/inference.md tells the
whole.
"""

from codedgrad.inference.serving.policy import Policy, deadline, exact
from codedgrad.inference.serving.predictor import CodedPredictor
from codedgrad.inference.serving.query import Answer, Query

__all__ = ["Answer", "CodedPredictor", "Policy", "Query", "deadline", "exact"]
