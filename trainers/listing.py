"""`--list algorithms|models|datasets|configs`: print what is available, one per line, without importing any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from args_helper import Config
from data import DATASETS
from models import MODELS
from trainers.algorithms import ALGORITHMS, Algorithm

PROJECT = Path(__file__).resolve().parent.parent
REGISTRIES = {"algorithms": ALGORITHMS, "models": MODELS, "datasets": DATASETS}


def print_list(config: Config) -> None:
    """Print all names of the kind in the option `list`, each with a description."""
    lines = dict(_configs() if config.list == "configs" else _registered(REGISTRIES[config.list]))
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def _registered(registry: Mapping[str, str | Algorithm]) -> Iterator[tuple[str, str]]:
    """Yield names and what they stand for: the first docstring line of a function or module; aliases share one line."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, row in registry.items():
        target, title = (row.function, f"{row.title}: ") if isinstance(row, Algorithm) else (row, "")
        names.setdefault((target, title), []).append(name)
    for (target, title), of_it in names.items():
        yield ", ".join(of_it), title + (getattr(registry[of_it[0]], "does", "") or _first_line(target))


def _first_line(target: str) -> str:
    module, _, name = target.partition(":")
    tree: ast.AST = ast.parse((PROJECT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    if name:
        tree = next(node for node in tree.body if getattr(node, "name", None) == name)
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _configs() -> Iterator[tuple[str, str]]:
    """Yield the path of each config and the first line of its header."""
    for path in sorted((PROJECT / "configs").rglob("*.yml")):
        if "measured" in path.parts:
            continue
        with path.open(encoding="utf-8") as file:
            yield str(path.relative_to(PROJECT)), file.readline().lstrip("# ").strip()
