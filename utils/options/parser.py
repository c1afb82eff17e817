"""Reads option values from YAML files and flags, and collects every problem with its file and line or its flag.

`args_helper.parse_args` calls `read_flags`, then `read_yaml`, merges both (a flag wins) and calls `validated`. A wrong
name or value raises nothing here: it becomes an entry in one list of problems, so that a user sees all of them at once.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from utils.errors import UserError, abbreviate
from utils.options.messages import complaint, corrected, no_such_option
from utils.options.types import Options, allowed, choices_of, is_bool, is_list
from utils.options.yaml_file import plain_value, read_nodes, slip

Kind = TypeVar("Kind", bound=Options)

SWEEP_KEYS = ("options", "vary", "search", "study", "runs")
"""What a sweep file has at its top; no option has one of these names."""

MISSING = object()
"""Stands for the value of a flag that was given without a value."""


class Given(NamedTuple):
    """The value a user gave for an option, and where: a flag, or a line of a file.

    Attributes:
        value: as YAML or the command line gives it, not validated.
        where: `--lr`, `lr (FILE:LINE)` or, for a keyword argument, `lr=`; it begins the message of a problem.
    """

    value: Any
    where: str


@dataclass(frozen=True)
class Declarations:
    """The declarations of all options.

    Attributes:
        groups: classes whose fields are the options; each class is a section of `--help`.
        retired: options that no longer do anything -> what to use instead.
        flags_only: options that a config file cannot hold, because they say what to do with one.
    """

    groups: tuple[type[Options], ...]
    retired: Mapping[str, str]
    flags_only: frozenset[str]

    @cached_property
    def fields(self) -> dict[str, FieldInfo]:
        """Option name -> its declaration."""
        return {name: field for group in self.groups for name, field in group.model_fields.items()}

    @cached_property
    def canonical(self) -> dict[str, str]:
        """Alias of an option -> its canonical name."""
        return {alias: name for name, field in self.fields.items() for alias in field.json_schema_extra["aliases"]}

    def take(self, options: dict[str, Given], name: str, given: Given, problems: list[str]) -> None:
        """Store a known option under its canonical name; warn about a retired one; add a problem for any other.

        Args:
            options: canonical name -> value; grows.
            name: as the user wrote it, with `_` for `-`.
            given: its value; None leaves the default, and so does Python's word for it where the default is None;
                `MISSING` is a problem.
            problems: grows.
        """
        name = self.canonical.get(name, name)
        if name in self.fields:
            if given.value is MISSING:
                problems.append(f"{given.where}: a value is missing")
            elif given.value is not None and (given.value != "None" or self.fields[name].default is not None):
                options[name] = given
        elif name in self.retired:
            warnings.warn(f"{given.where}: this option does nothing any more; {self.retired[name]}", stacklevel=2)
        else:
            problems.append(self.unknown(given.where, name, given.value))

    def unknown(self, where: str, name: str, value: Any) -> str:
        """Return the message for an option that does not exist."""
        return no_such_option(where, name, value, (*self.fields, *self.canonical))


# ---- flags ---------------------------------------------------------------------------------------------------------


def read_flags(declared: Declarations, argv: list[str] | None) -> tuple[dict[str, Given], list[str]]:
    """Parse the command line.

    Args:
        declared: all options.
        argv: the words after the program's name; None: the process's own.

    Returns:
        Canonical name -> given value, and the problems: unknown options, missing values, words that belong to none.

    Raises:
        SystemExit: `--help` was given, and the help is printed.
    """
    words = _joined([_spelled(word) for word in (sys.argv[1:] if argv is None else argv)])
    problems: list[str] = []
    parsed, rest = _parser(declared).parse_known_args(words)
    flags: dict[str, Given] = {}
    for name, value in vars(parsed).items():
        # An empty word is what the shell makes of "$FILE" if it is not set. As a list it is an empty one.
        declared.take(flags, name, Given(MISSING if value in ([], "") else value, f"--{name}"), problems)
    for before, word, after in zip(["", *rest], map(abbreviate, rest), [*map(abbreviate, rest[1:]), ""]):
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            value = value if equals or after.startswith("-") else after
            problems.append(declared.unknown(flag, flag.lstrip("-"), value or None))
        elif not before.startswith("-"):  # otherwise it is the value of an unknown flag
            meant = f"; did you mean --config {word}?" if word.endswith((".yml", ".yaml")) else ""
            problems.append(f"{word}: not expected; an option is written --name value{meant}")
    return flags, problems


def _spelled(word: str) -> str:
    """Replace `-` by `_` in a flag's name; leave a value unchanged."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _joined(words: list[str]) -> list[str]:
    """Join `--lmbda -1e-4` into `--lmbda=-1e-4`, because argparse takes some negative numbers for flags."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and _is_number(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.startswith("-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return text if action.const is True else text.strip("[]")  # only switches may come without a value


def _parser(declared: Declarations) -> argparse.ArgumentParser:
    parser = _Parser(
        usage="python main.py --config FILE.yml [--option value ...]",
        description="Find and compare lottery tickets at initialisation.",
        epilog="Options may be written with - or _. A flag beats the YAML file, which beats the default.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the result holds only what was given, not the defaults
        formatter_class=_Help,
    )
    for group in declared.groups:
        section = parser.add_argument_group(group.__doc__)
        for name, field in group.model_fields.items():
            _add_flag(section, name, field)
    silent = parser.add_argument_group()
    for name in declared.retired:
        silent.add_argument(f"--{name}", nargs="?", const=True, help=argparse.SUPPRESS)
        silent.add_argument(f"--no_{name}", dest=name, action="store_const", const=False, help=argparse.SUPPRESS)
    return parser


def _add_flag(section: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    spellings = [f"--{name}", *(f"-{a}" if len(a) == 1 else f"--{a}" for a in field.json_schema_extra["aliases"])]
    default = str(field.default).lower() if is_bool(field) else field.default
    named = is_bool(field) or choices_of(field)  # the metavar already shows these
    notes = [*([] if default in (None, ()) else [str(default)]), *([] if named else [allowed(field)])]
    text = f"{field.description} [{'; '.join(notes)}]" if notes else field.description
    text = text.replace("%", "%%")
    if is_bool(field):
        section.add_argument(*spellings, nargs="?", const=True, metavar="true|false", help=text)
        section.add_argument(f"--no_{name}", dest=name, action="store_const", const=False, help=argparse.SUPPRESS)
        return
    choices = choices_of(field)
    of_number = {"whole": "N", "number": "X"}.get(re.split("[ ,]", allowed(field))[0])
    kind = "|".join(choices) if choices else of_number or name.rpartition("_")[2].upper()
    # Values are optional for argparse, whose own error would end the program at the first flag without one.
    arity = {"nargs": "*"} if is_list(field) else {"nargs": "?", "const": MISSING}
    section.add_argument(*spellings, metavar=kind, help=text, **arity)


# ---- YAML files ----------------------------------------------------------------------------------------------------


def read_yaml(declared: Declarations, path: Path, problems: list[str]) -> dict[str, Given]:
    """Read the options of a flat YAML file, by canonical name, each with its line number.

    Args:
        declared: all options.
        path: the file.
        problems: grows by unknown, repeated and misplaced options, and by values that are nested.

    Raises:
        UserError: the file does not exist, or is not a YAML mapping.
    """
    root = read_nodes(path, "config file")
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise UserError(
            f"{path} is not a list of options: it should have lines such as 'lr: 0.1'{slip(root.start_mark)}"
        )
    sections = {key.value for key, value in root.value if isinstance(value, yaml.MappingNode)}
    # Not any one of these keys: a section that is called `search` may stand in a config by mistake.
    if "runs" in sections or (sections and all(key.value in SWEEP_KEYS for key, _ in root.value)):
        raise UserError(f"--config {path}: it is a sweep file: --sweep {path}")
    options: dict[str, Given] = {}
    seen: dict[str, str] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        name = abbreviate(key.value).replace("-", "_")
        try:
            field = declared.fields.get(canonical := declared.canonical.get(name, name))
            given = plain_value(value, is_text=field is not None and allowed(field) == "text")
        except ValueError as error:
            problems.append(f"{name} ({where}): {error}")
            continue
        first = seen.setdefault(canonical, f"{name} ({where})")
        if first != f"{name} ({where})":
            problems.append(f"{name} ({where}): given before, at {first}")
        elif name in declared.flags_only and given is not None:
            problems.append(f"{name} ({where}): belongs on the command line, as --{name}")
        else:
            declared.take(options, name, Given(given, f"{name} ({where})"), problems)
    return options


# ---- values --------------------------------------------------------------------------------------------------------


def validated(kind: type[Kind], given: Mapping[str, Given], problems: list[str]) -> tuple[Kind, set[str]]:
    """Validate the given values; an option with an invalid value keeps its default.

    Args:
        kind: the class of the options.
        given: option name -> its value.
        problems: a message is appended for every invalid value.

    Returns:
        The options, and the names of those with invalid values.
    """
    values, wrong = {name: one.value for name, one in given.items()}, set()
    try:
        return kind(**values), wrong
    except ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0])
            if name not in wrong:
                where, near = given[name].where, one.get("ctx", {}).get("nearest")
                meant = "" if near is None else corrected(where, name, near)
                problems.append(f"{where}: {complaint(one)}{meant}")
            wrong.add(name)
        return kind(**{name: value for name, value in values.items() if name not in wrong}), wrong
