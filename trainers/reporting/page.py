"""Render the report as one self-contained HTML page, and as Markdown."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from trainers.reporting.gather import Problem
from trainers.reporting.plots import RenderedPlot
from trainers.reporting.tables import Table, plain

HERE = Path(__file__).parent
LARGEST_IN_PAGE = 2_000_000
"""Up to this size in bytes, files to download are embedded in the page; larger ones are only linked."""
TYPES = {".csv": "text/csv;charset=utf-8", ".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class File:
    """A file to download: its path in the report's folder, its content, and a description of its kind."""

    path: str
    content: bytes
    kind: str

    @property
    def name(self) -> str:
        """The name without the folder."""
        return Path(self.path).name

    @property
    def address(self) -> str:
        """The address of its link in the page: the embedded content, or the path."""
        inside = len(self.content) <= LARGEST_IN_PAGE
        return data_uri(TYPES[Path(self.path).suffix], self.content) if inside else self.path


@dataclass(frozen=True)
class Part:
    """A part of a section: a plot, a table, or both.

    Attributes:
        slug: its anchor within the page.
        heading: its topic.
        label: heading and task, unique in the report.
        table: None: the part has no table.
        figure: None: the part has no plot.
        alt: a description of the plot.
        caption: below the plot.
        notes: paragraphs above the plot.
        folded: whether the table is hidden until it is opened.
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
    """The section on one task: its parts, below notes that concern all of them."""

    slug: str
    title: str
    notes: Sequence[str]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """The whole report."""

    title: str
    about: str
    sections: Sequence[Section]
    problems: Sequence[Problem] = ()

    @property
    def files(self) -> list[File]:
        """All files beside the page."""
        return [file for section in self.sections for part in section.parts for file in part.files]


def as_html(report: Report) -> str:
    """Render the page. Names in run folders are untrusted: all text is escaped, only the page's own script may run.

    The page's content security policy names the script by its hash, so the template has to embed it unchanged.

    Args:
        report: with its plots and tables rendered.

    Returns:
        A page that loads no other file, except downloads above `LARGEST_IN_PAGE`.
    """
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("page.html.j2")
    return template.render(report=report, script=Markup(script), script_hash=f"sha256-{digest}", uri=data_uri)


def data_uri(kind: str, content: str | bytes) -> str:
    """Encode content, a string as UTF-8, as a data URI of a media type such as `image/png`."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def as_markdown(report: Report) -> str:
    """Render the report in GitHub's Markdown, with links to the plots and tables beside it."""
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
