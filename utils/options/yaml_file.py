"""Reads untrusted YAML: runs no code, stops alias bombs, and refuses files larger than a person writes.

Config files are flat and are read as nodes (`read_nodes`, `plain_value`), which keep the line of each option. Sweep
files are nested, and `read_document` constructs them whole.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from utils.errors import UserError, abbreviate, did_you_mean

LARGEST_BYTES = 2**18
_TEXT, *_AS_WRITTEN = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "timestamp"))
_PLAIN = {*_AS_WRITTEN, *(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "null"))}
_NO_OTHER_BASE = {f"tag:yaml.org,2002:{kind}": r"(?! .*: | [-+]?0[0-9_]+$ )" for kind in ("int", "float")}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without octal and base-60 numbers: `010` and `1:30` mean what they mean in a flag, not 8 and 90."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, re.compile(_NO_OTHER_BASE.get(tag, "") + known.pattern, re.VERBOSE)) for tag, known in resolvers]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_nodes(path: Path, title: str) -> yaml.Node | None:
    """Parse a YAML file into nodes without constructing values; return None for an empty file.

    Args:
        path: the file.
        title: what kind of file it is, for messages.

    Raises:
        UserError: the file cannot be read, is not YAML, is larger than `LARGEST_BYTES`, or is nested too deeply.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise UserError(f"{path} is larger than {LARGEST_BYTES // 1024} KiB: it is no {title}")
        return _Loader(content.decode()).get_single_node()
    except FileNotFoundError as error:
        names = sorted(file.name for file in path.parent.glob("*.y*ml"))
        meant = did_you_mean(path.name, names) or ("; --list configs shows them" if title == "config file" else "")
        raise UserError(f"cannot read the {title} {path}: {error.strerror}{meant}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"cannot read the {title} {path}: line {line} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        raise UserError(f"cannot read the {title} {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {_complaint(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: it is no {title}") from error


def read_document(path: Path, title: str, texts: Container[str] = ()) -> Any:
    """Read a YAML file that holds more than options, with aliases and merged mappings resolved.

    Args:
        path: the file.
        title: what kind of file it is, for messages.
        texts: keys whose values are texts: numbers and dates among them stay as written, as do all keys.

    Returns:
        Dictionaries, lists and plain values, not validated; None for an empty file.

    Raises:
        UserError: as for `read_nodes`, or a value cannot be constructed.
    """
    node = read_nodes(path, title)
    for mapping in _mappings(node):
        known: set[str] = set()
        for number, (key, value) in enumerate(mapping.value):
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in known:  # YAML would take the last of the values
                    raise UserError(f"{path}:{key.start_mark.line + 1}: {abbreviate(key.value)} stands there twice")
                known.add(key.value)
                if key.value.replace("-", "_") in texts:
                    if isinstance(value, yaml.SequenceNode):
                        parts = [_as_text(part, _AS_WRITTEN) for part in value.value]
                        value = yaml.SequenceNode(value.tag, parts, value.start_mark)
                    value = _as_text(value, _AS_WRITTEN)
                mapping.value[number] = _as_text(key, _PLAIN), value
    try:
        return None if node is None else _Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError, LookupError) as error:  # from constructors
        told = _complaint(error) if isinstance(error, yaml.YAMLError) else abbreviate(str(error))
        raise UserError(f"cannot read the {title} {path}: {told}") from error


def plain_value(node: yaml.Node, is_text: bool = False) -> Any:
    """Return the string, number, bool, date or None that a node holds, or a list of these.

    Args:
        node: of the value.
        is_text: whether a text is wanted, so that a number or date stays as it is written: YAML reads `1_44` as 144.

    Raises:
        ValueError: the node holds anything else; the message says what.
    """
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_scalar(part) for part in node.value]
    value = _scalar(node)
    return node.value if is_text and node.tag in _AS_WRITTEN else value


def _scalar(node: yaml.Node) -> Any:
    loader = _Loader("")
    # An explicit tag (`!!int abc`, `!!python/object`) could ask for a number that is none, or for an object.
    if not isinstance(node, yaml.ScalarNode) or node.tag not in (
        _TEXT, loader.resolve(yaml.ScalarNode, node.value, (True, False))
    ):  # fmt: skip
        raise ValueError(f"neither a plain value nor a list of them ({_kind(node)})")
    return loader.construct_object(node)


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yield each mapping of a document once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))  # aliases lead to the same node
            if isinstance(node, yaml.MappingNode):
                waiting += [part for _, part in node.value]
                yield node
            else:
                waiting += node.value


def _as_text(node: yaml.Node, tags: Container[str]) -> yaml.Node:
    """Return a text of a scalar that has one of the tags, and any other node as it is; aliases of it do not change."""
    is_one = isinstance(node, yaml.ScalarNode) and node.tag in tags
    return yaml.ScalarNode(_TEXT, node.value, node.start_mark) if is_one else node


def _kind(node: yaml.Node) -> str:
    return abbreviate(node.tag.removeprefix("tag:yaml.org,2002:"))


_UNFINISHED = {
    "while scanning a quoted scalar": "the quote is not closed",
    "while scanning a simple key": "is a colon missing?",
}
"""What YAML was reading -> what is wrong where it began; where YAML gave up is some lines later."""


def _complaint(error: yaml.YAMLError) -> str:
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context", None)
    text = abbreviate(getattr(error, "problem", None) or str(error).splitlines()[0])
    if mark is None:
        return text
    if text.startswith("but "):  # the second half of a sentence
        text = f"{context} {text}"
    hint = slip(mark)
    if not hint and context in _UNFINISHED:
        mark, hint = error.context_mark, f" ({_UNFINISHED[context]})"
    if not hint and text.startswith("mapping values"):
        hint = _second_colon(mark)
    return f"{text}, line {mark.line + 1}, column {mark.column + 1}{hint}"


def _second_colon(mark: yaml.Mark) -> str:
    """Return why a colon at a mark is one too many."""
    before = mark.buffer.splitlines()[mark.line][: mark.column]
    if ": " in before:
        return " (put a text with ': ' in quotes)"
    return " (write an option at the start of its line)" if before[:1] == " " else " (is a colon missing above?)"


def slip(mark: yaml.Mark) -> str:
    """Return what is probably wrong with the first odd line up to a mark: a tab, or no space after the colon."""
    lines = (mark.buffer or "").splitlines()[: mark.line + 1]
    for number, line in enumerate(lines, start=1):
        if re.match(r"\s*\t", line):
            return f" (line {number}: indent with spaces, not with a tab)"
        if found := re.match(r"\s*([\w-]+):(?=[^\s:])", line):
            return f" (line {number}: is a space missing after '{found[1]}:'?)"
    if lines and lines[-1][mark.column : mark.column + 1] == "\t":
        return " (write a space instead of the tab)"
    return ""
