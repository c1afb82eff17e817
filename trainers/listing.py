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
SHARING = {
    "hc": "Learn a score in [0, 1] for every weight, and round it; nothing is pruned.",
    "hc_iter": "Learn a score in [0, 1] for every weight, round it, and prune the lowest every `iter_period` epochs.",
    "ep": "Learn a score for every weight; keep the weights with the largest |score| of each layer.",
    "global_ep": "Learn a score for every weight; keep the weights with the largest |score| of the network.",
    "global_ep_iter": "The same as global_ep, but keep fewer weights every `iter_period` epochs.",
}
"""Algorithm that shares its function with others -> what it does, in place of the function's docstring."""


def print_list(config: Config) -> None:
    """Print all names of the kind in the option `list`, each with a description."""
    lines = dict(_configs() if config.list == "configs" else _registered(REGISTRIES[config.list]))
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")


def _registered(registry: Mapping[str, str | Algorithm]) -> Iterator[tuple[str, str]]:
    """Yield names and what is in `SHARING` or the first docstring line of their function; aliases share one line."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, row in registry.items():
        target, title = (row.function, f"{row.title}: ") if isinstance(row, Algorithm) else (row, "")
        names.setdefault((target, title), []).append(name)
    for (target, title), of_it in names.items():
        yield ", ".join(of_it), title + (SHARING.get(of_it[0]) or _first_line(target))


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
