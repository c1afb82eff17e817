"""Where imports may point: from main down to utils, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import PROJECT

from trainers.algorithms import ALGORITHMS

ROOMS = ("data", "models", "trainers", "utils")
MAY_IMPORT = {
    "main": {"args_helper", "utils"},  # and, by name, the mode that is asked for
    "args_helper": {"data", "models", "trainers.algorithms", "utils"},
    "trainers": {"args_helper", "data", "models", "trainers", "utils"},
    "models": {"models", "utils"},
    "data": {"data", "utils"},
    "utils": {"utils"},
}
EXCEPTIONS = {
    ("data", "args_helper"),  # the function that reads a data set takes the options, and needs their type
    ("models", "args_helper"),  # so does the function that builds a network
    ("models/build.py", "data"),  # which asks for the shape of images that the data set declares
}
TABLES = ("data/__init__.py", "models/__init__.py", "trainers/algorithms/__init__.py")
FILES = [PROJECT / "main.py", PROJECT / "args_helper.py"]
FILES += [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """The modules of the project that a file imports anywhere, in functions too, but not for type checking alone."""

    def inside(tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: imports are absolute"
                # A module may be imported by its own name, or as a name of its package.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield from inside(node)

    for name in inside(ast.parse(path.read_text(encoding="utf-8"))):
        if (place := place_of(name)) is not None:
            yield place


def place_of(name: str) -> str | None:
    """The file of the project that `module` or `module.name` stands for."""
    for module in (name, name.rpartition(".")[0]):
        base = PROJECT / module.replace(".", "/")
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if module and path in FILES:
                return path.relative_to(PROJECT).as_posix()
    return None


def is_allowed(place: str, imported: str) -> bool:
    room = place.partition("/")[0].removesuffix(".py")
    module = imported.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    other = module.partition(".")[0]
    if module in MAY_IMPORT[room] or other in MAY_IMPORT[room]:
        return room != "args_helper" or other == "utils" or imported in TABLES
    return (room, other) in EXCEPTIONS or (place, other) in EXCEPTIONS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    place = path.relative_to(PROJECT).as_posix()
    assert [other for other in imports(path) if not is_allowed(place, other)] == []


def test_no_imports_make_a_circle() -> None:
    graph = {path.relative_to(PROJECT).as_posix(): set(imports(path)) for path in FILES}
    graph = {place: others - {place} for place, others in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # else it raises CycleError, and names one


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_of_names_import_nothing(table: str) -> None:
    tree = ast.parse((PROJECT / table).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"__future__", "typing", "collections.abc"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


ORDINARY_WORDS = {"training", "random", "given"}
"""Names of algorithms that are used otherwise as well."""


@pytest.mark.parametrize("room", ["models", "data", "utils"])
def test_nothing_below_the_trainers_knows_an_algorithms_name(room: str) -> None:
    for path in sorted((PROJECT / room).rglob("*.py")):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & (set(ALGORITHMS) - ORDINARY_WORDS), path


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trainers.training.loop\nelse:\n    pass\n"
        "def f():\n    from models.layers import Round\n    import data, utils.masks\nfrom utils import masks\n"
    )
    (tmp_path / "module.py").write_text(code)
    found = list(imports(tmp_path / "module.py"))
    assert found == ["models/layers.py", "data/__init__.py", "utils/masks.py", "utils/masks.py"]


def test_the_options_are_known_without_importing_torch() -> None:
    code = "import sys, args_helper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60, check=False).returncode == 0
