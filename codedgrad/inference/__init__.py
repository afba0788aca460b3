"""Evaluation and prediction that wait for nobody: `evaluate` and `CodedPredictor`.

`evaluation` names the stages of one evaluation. `samples` cuts the data into batches,
`parts` the batches into what workers compute and help with, `work` computes parts,
`sums` adds metrics up, `row` writes sums into rows, and `session` exchanges rows.
docs/evaluation.md tells the whole.
The predictor has a folder of its own, `serving`.
"""

from codedgrad.inference.evaluation import evaluate
from codedgrad.inference.serving import CodedPredictor, deadline, exact
from codedgrad.inference.sums import Each

__all__ = ["CodedPredictor", "Each", "deadline", "evaluate", "exact"]
