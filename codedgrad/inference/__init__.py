"""Evaluation that waits for nobody: `evaluate`, and `Each` for results by sample.

`evaluation` names the stages of one evaluation. `samples` cuts the data into batches,
`parts` the batches into what workers compute and help with, `work` computes parts,
`sums` adds metrics up, `row` writes sums into rows, and `session` exchanges rows.
docs/evaluation.md tells the whole.
"""

from codedgrad.inference.evaluation import evaluate
from codedgrad.inference.sums import Each

__all__ = ["Each", "evaluate"]
