"""The table of columns and the fields of a report are the same."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from codedgrad import monitor
from codedgrad.monitor.report import COLUMNS, LOGGED, StepReport

if TYPE_CHECKING:
    from codedgrad.monitor.columns import Column

FIELDS = {field.name for field in fields(StepReport)}


def test_every_field_has_a_line_and_every_line_a_field() -> None:
    names = [column.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert set(names) == FIELDS


def test_every_field_is_documented() -> None:
    text = StepReport.__doc__ or ""
    assert [name for name in FIELDS if f"\n        {name}: " not in text] == []


def test_names_are_unique() -> None:
    for names in (
        [column.heading for column in LOGGED],
        [metric.full_name for column in COLUMNS for metric in column.metrics],
        [column.tag for column in COLUMNS if column.tag],
        [column.page for column in COLUMNS if column.page],
    ):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_a_line_makes_sense(column: Column) -> None:
    assert (column.unit == "s") == column.name.endswith("_s")
    assert all(m.help.endswith(".") and m.help.isascii() for m in column.metrics)
    if column.kind != "number":
        # Only a number can be added up; the page and the trace have numbers only.
        assert all(metric.value is not None for metric in column.metrics)
        assert column.page is None
    if column.kind == "by step":
        assert column.log is None
        assert not column.saved
    if column.page is not None:
        assert column.log is not None  # the page is made from the log


def test_the_log_has_the_order_of_the_fields() -> None:
    order = [field.name for field in fields(StepReport)]
    places = [order.index(column.name) for column in LOGGED]
    assert places == sorted(places)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plots_arrivals'"):
        monitor.plots_arrivals  # noqa: B018
