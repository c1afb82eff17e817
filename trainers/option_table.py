"""Generate the table of options in configs/OPTIONS.md from their declarations.

    python -m trainers.option_table configs/OPTIONS.md

rewrites the table. No other module imports this one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic.fields import FieldInfo

from args_helper import GROUPS
from utils.errors import UserError
from utils.markdown import markdown_table, replace_between_markers
from utils.options.types import allowed, choices_of, is_bool

HEADINGS = ("option", "default", "allowed", "meaning", "affects the result")


def option_table() -> str:
    """Return one table per group of options, with one row per option."""
    return "\n\n".join(
        f"**{group.__doc__}**\n\n" + markdown_table(HEADINGS, (_row(*one) for one in group.model_fields.items()))
        for group in GROUPS
    )


def _row(name: str, field: FieldInfo) -> list[str]:
    aliases = [f"`-{a}`" if len(a) == 1 else f"`{a}`" for a in field.json_schema_extra["aliases"]]
    default = str(field.default).lower() if is_bool(field) else field.default
    return [
        ", ".join([f"`{name}`", *aliases]),
        "" if default in (None, ()) else f"`{default}`",
        _plain(allowed(field)) if choices_of(field) else allowed(field),
        _plain(field.description),
        "✓" if field.json_schema_extra["affects"] else "",
    ]


def _plain(text: str) -> str:
    """Escape a text for a Markdown cell."""
    return text.translate(str.maketrans({"<": "&lt;", "*": "\\*"}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trainers.option_table")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE.md")
    for path in parser.parse_args().paths:
        try:
            text = replace_between_markers(path.read_text(encoding="utf-8"), "options", option_table())
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError, UserError) as error:  # ValueError: not UTF-8
            parser.error(f"cannot write the options into {path}: {getattr(error, 'strerror', None) or error}")
