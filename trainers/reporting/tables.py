"""Tables of the report: formatted cells for the page, plain rows for download."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.files import as_csv
from utils.markdown import markdown_table

Row = Mapping[str, Any]
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column as displayed.

    Attributes:
        heading: with the unit.
        show: row -> text.
        sort: row -> sort key; None: sort by the text.
        links: row -> (text, address) pairs; the cell shows these links instead of its text.
    """

    heading: str
    show: Callable[[Row], str]
    sort: Callable[[Row], float | None] | None = None
    links: Callable[[Row], list[tuple[str, str]]] | None = None


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        caption: its content in a sentence or two.
        columns: as displayed.
        rows: as downloaded, without their lists of links; all have the same keys.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def csv(self) -> str:
        """Return the rows as CSV, numbers unrounded."""
        return as_csv([{name: value for name, value in row.items() if name != "links"} for row in self.rows])

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        cells = ([_cell(column, row) for column in self.columns] for row in self.rows)
        return markdown_table([plain(column.heading) for column in self.columns], cells)


def _cell(column: Column, row: Row) -> str:
    if column.links is None:
        return plain(column.show(row))
    return ", ".join(f"[{plain(text)}]({address})" for text, address in column.links(row)) or NONE


def plain(text: str) -> str:
    """Escape a text for Markdown; names in run folders are untrusted."""
    for sign in "\\`*_[]#<>|":
        text = text.replace(sign, f"&#{ord(sign)};" if sign in "<>|" else f"\\{sign}")
    return " ".join(text.split())


# ---- kinds of columns ----------------------------------------------------------------------------------------------


def text(heading: str, key: str) -> Column:
    """A column of text.

    Args:
        heading: of the column.
        key: of the row; None or "" shows as a dash.
    """
    return Column(heading, lambda row: NONE if row[key] in (None, "") else str(row[key]))


def number(heading: str, key: str, form: str = ".2f") -> Column:
    """A column of numbers.

    Args:
        heading: with the unit.
        key: of the row; None shows as a dash.
        form: as in `formatted`.
    """

    def sort(row: Row) -> float | None:
        return None if row[key] is None or math.isnan(row[key]) else row[key]

    return Column(heading, lambda row: formatted(row[key], form), sort)


def spread(heading: str, key: str, form: str = ".2f") -> Column:
    """A column of mean ± standard deviation, from `key`_mean and `key`_sd.

    It adds the number of trials where `key`_n is in the row and differs from the row's `n`.

    Args:
        heading: with the unit.
        key: of the row, without the ending.
        form: of both numbers, as in `formatted`.
    """

    def show(row: Row) -> str:
        mean, sd = formatted(row[f"{key}_mean"], form), row[f"{key}_sd"]
        own = row.get(f"{key}_n")
        fewer = f" (n = {own})" if own and own != row["n"] else ""
        return (mean if sd is None else f"{mean} ± {formatted(sd, form.lstrip('+'))}") + fewer

    return Column(heading, show, lambda row: row[f"{key}_mean"])


def formatted(value: float | None, form: str) -> str:
    """Format a number by a Python format, or by `si` (three digits and a prefix: 58.8 G); None gives a dash."""
    if value is None:
        return NONE
    written = prefixed(value) if form == "si" else format(value, form)
    return written.replace("-", MINUS)


def prefixed(value: float) -> str:
    """Format a number with three digits and an SI prefix: 58846399488 gives `58.8 G`."""
    for sign in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {sign}".strip()
        value /= 1000
    return f"{value:.3g} E"
