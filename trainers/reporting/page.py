"""The report as one HTML page that needs nothing beside it, and as Markdown."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from trainers.reporting.gather import Problem
from trainers.reporting.plots import RenderedPlot
from trainers.reporting.tables import Table, plain

HERE = Path(__file__).parent
LARGEST_IN_PAGE = 2_000_000
"""Bytes up to which a file to download stands in the page itself; a larger one is linked to, beside it."""
TYPES = {".csv": "text/csv;charset=utf-8", ".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class File:
    """A file to download: its place in the report's folder, what is in it, and what it is, in words."""

    path: str
    content: bytes
    kind: str

    @property
    def name(self) -> str:
        """Without its folder."""
        return Path(self.path).name

    @property
    def address(self) -> str:
        """Where the page finds it."""
        inside = len(self.content) <= LARGEST_IN_PAGE
        return data_uri(TYPES[Path(self.path).suffix], self.content) if inside else self.path


@dataclass(frozen=True)
class Part:
    """A part of a section: a figure, a table, or both.

    Attributes:
        slug: its address within the page.
        heading: what it is about.
        label: heading and task, unlike that of any other part.
        table: None where there is none.
        figure: likewise.
        alt: the figure in words.
        caption: below the figure.
        notes: paragraphs above it.
        folded: whether the table opens on demand.
        files: to download.
    """

    slug: str
    heading: str
    label: str
    table: Table | None = None
    figure: RenderedPlot | None = None
    alt: str = ""
    caption: str = ""
    notes: Sequence[str] = ()
    folded: bool = False
    files: Sequence[File] = ()


@dataclass(frozen=True)
class Section:
    """A task: its parts, under paragraphs that concern all of them."""

    slug: str
    title: str
    notes: Sequence[str]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    about: str
    sections: Sequence[Section]
    problems: Sequence[Problem] = field(default=())

    @property
    def files(self) -> list[File]:
        """What lies beside the page."""
        return [file for section in self.sections for part in section.parts for file in part.files]


def as_html(report: Report) -> str:
    """The page. Names in run folders come from anywhere: all is escaped, and no script but the page's own may run."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, keep_trailing_newline=False)
    environment.globals["uri"] = data_uri
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.j2")
    return template.render(report=report, script=Markup(script), script_hash=f"sha256-{digest}")


def data_uri(kind: str, content: str | bytes) -> str:
    """Content as an address that holds it."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def as_markdown(report: Report) -> str:
    """The same in GitHub's Markdown, with links to the figures and tables beside it."""
    lines = [f"# {plain(report.title)}", plain(report.about)]
    if report.problems:
        lines += ["## What could not be used", "\n".join(
            f"- {plain(str(one.folder))}: {plain(one.text)}" for one in report.problems)]  # fmt: skip
    for section in report.sections:
        lines += [f"## {plain(section.title)}", *map(plain, section.notes)]
        for part in section.parts:
            lines += [f"### {part.heading}", *map(plain, part.notes)]
            if part.figure:
                image = next(file.path for file in part.files if file.path.endswith(".png"))
                lines += [f"![{plain(part.alt)}]({image})", plain(part.caption)]
            if part.table and not part.folded:
                lines += [plain(part.table.caption), part.table.markdown()]
            lines.append(f"Files: {', '.join(f'[{file.kind}]({file.path})' for file in part.files)}")
    return "\n\n".join(lines) + "\n"
