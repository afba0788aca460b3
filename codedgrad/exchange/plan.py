"""What the engine knows of a code: a plan of integers or a matrix, and row numbers.

A code whose rows are plain sums is a summation tree to the engine, and a row's number
is its node. Any other code is a matrix, and a row's number is its place there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codedgrad.errors import ConfigError

if TYPE_CHECKING:
    from codedgrad.codes import Code
    from codedgrad.job.settings import ExchangeSettings


def plan_of(code: Code) -> Any:
    """Returns the `_engine.Plan` by which the engine decodes the rows of `code`."""
    from codedgrad.job import _engine

    if code.linear:
        return _engine.linear_plan(code.matrix(), code.workers - code.tolerance())
    tree = code.tree
    rows = {
        code.row_node(worker, i)
        for worker, own in enumerate(code.rows)
        for i in range(len(own))
    }
    return _engine.tree_plan(
        tree.left, tree.right, tree.parent, tree.root, sorted(rows)
    )


def row_number(code: Code, worker: int, row: int) -> int:
    """Returns a row's number in the engine: its tree node, or its row of the matrix."""
    if code.linear:
        return code.row_index(worker, row)
    return code.row_node(worker, row)


def required_rows(code: Code) -> list[list[int]]:
    """Returns, by worker, the numbers of the rows that it sends in every step."""
    return [
        [
            row_number(code, worker, i)
            for i, row in enumerate(code.rows[worker])
            if row.after < code.required[worker]
        ]
        for worker in range(code.workers)
    ]


def wired(code: Code, settings: ExchangeSettings) -> ExchangeSettings:
    """Returns settings whose wire type the code can take, where they name none.

    Codes that decode with real coefficients do not take the gradients' own type where
    that has 16 bits, see `check_wire`.
    """
    if code.linear and settings.wire is None:
        return replace(settings, wire="float32")
    return settings


def check_wire(code: Code, wire: str, narrow_buckets: int) -> None:
    """Refuses narrow messages for codes that decode with real coefficients.

    Raises:
        ConfigError: such a code, and buckets that travel in 16 bits.
    """
    if code.linear and narrow_buckets:
        raise ConfigError(
            f"{code.describe()} decodes with real coefficients, which would "
            f'amplify the rounding of wire="{wire}"; use wire="float32" '
            f"or a code whose rows are plain sums, like codes.spread"
        )
