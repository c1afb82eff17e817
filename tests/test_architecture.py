"""Where imports may point: from main down to utils, and never in a circle."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import PROJECT, SMALL

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


LIGHT = {"utils.options.contradictions", "trainers.algorithms"}
"""Of `trainers.algorithms` it is the contradictions, which like the tables are names and rules only."""


@pytest.mark.parametrize("table", [*TABLES, "utils/options/contradictions.py", "trainers/algorithms/contradictions.py"])
def test_the_tables_of_names_import_nothing(table: str) -> None:
    tree = ast.parse((PROJECT / table).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"__future__", "typing", "collections.abc", *LIGHT}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


ORDINARY_WORDS = {"training", "random"}
"""Names of algorithms that are used otherwise as well."""
SWITCHES = {"hc_iter", "random_subnet", "smart_ratio"}
"""What the options may name: the default, and the algorithms that published files have options of their own for."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_nothing_outside_algorithms_knows_an_algorithms_name(path: Path) -> None:
    place = path.relative_to(PROJECT).as_posix()
    if not place.startswith("trainers/algorithms/"):
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & (set(ALGORITHMS) - ORDINARY_WORDS - (SWITCHES if place == "args_helper.py" else set()))


SCRATCH = """
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from utils.masks import keep_highest


def find_ticket(net, _data, config, run):
    \"\"\"Keep the smallest weights.\"\"\"
    scores = {name: -weight.detach().abs() for name, weight in prunable_parameters(net).items()}
    return Ticket(plain_state(net), keep_highest(scores, config.density, run.rng("search", "ties")))
"""


def test_a_new_algorithm_is_one_file_and_one_row(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for room in (*ROOMS, "configs"):
        shutil.copytree(PROJECT / room, project / room, ignore=shutil.ignore_patterns("__pycache__", "datasets"))
    for file in ("main.py", "args_helper.py"):
        shutil.copy(PROJECT / file, project)
    (project / "trainers" / "algorithms" / "smallest.py").write_text(SCRATCH)
    table = project / "trainers" / "algorithms" / "__init__.py"
    row = '    "smallest": Algorithm(f"{_HERE}.smallest:find_ticket", "smallest magnitude"),\n'
    table.write_text(table.read_text().replace("ALGORITHMS = {\n", f"ALGORITHMS = {{\n{row}"))

    def run(*words: str) -> str:
        command = [sys.executable, "main.py", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = ["--algo", "smallest", *SMALL, "--fine_tune_epochs", "1"]
    assert "smallest " in run("--list", "algorithms")
    assert "fine-tuning  1 epochs" in run(*asked, "--dry_run")
    assert "sanity checks" in run(*asked)
    assert json.loads((project / "results" / "trial_1" / "summary.json").read_text())["algo"] == "smallest"
    run("--report", "results")
    assert "smallest" in (project / "results" / "report" / "report.md").read_text()


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
