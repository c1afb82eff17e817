"""GitHub Markdown tables, and the replacement of generated parts of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from utils.errors import UserError


def markdown_table(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Make a Markdown table from cells that are already Markdown; a `|` in a cell is escaped."""
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replace_between_markers(text: str, name: str, part: str) -> str:
    """Put `part` between the markers `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a text.

    The markers stay, so that the part can be replaced again.

    Raises:
        UserError: the text does not have each marker exactly once, in this order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"the {name} go between {begin} and {end}, which have to stand in the text once each")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"
