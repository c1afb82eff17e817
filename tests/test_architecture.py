"""Where imports may point: from main down to utils, and never in a circle."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest
from conftest import PROJECT, SMALL

from trainers.algorithms import ALGORITHMS

ROOMS = ("data", "models", "trainers", "utils")
MAY_IMPORT = {
    "main": {"args_helper", "utils"},  # and, by name, the mode that is asked for
    "args_helper": {"utils"},
    "trainers": {"args_helper", "data", "models", "trainers", "utils"},
    "models": {"models", "utils"},
    "data": {"data", "utils"},
    "utils": {"utils"},
}
EXCEPTIONS = {
    ("data", "args_helper"),  # the function that reads a data set takes the options, and needs their type
    ("models", "args_helper"),  # so does the function that builds a network
    ("models/build.py", "data"),  # which asks for the shape of images that the data set declares
    # and the options take their names from tables
    *(("args_helper.py", f"{room}/__init__.py") for room in ("data", "models", "trainers/algorithms")),
}
PATHS = [*PROJECT.glob("*.py"), *(path for room in ROOMS for path in (PROJECT / room).rglob("*.py"))]
TREES = {path.relative_to(PROJECT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PATHS)}


def imports(tree: ast.AST) -> set[str]:
    """The files of the project that a file imports anywhere, in functions too, but not for type checking alone."""

    def inside(tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "imports are absolute"
                # A module may be imported by its own name, or as a name of its package.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield from inside(node)

    return {place for name in inside(tree) if (place := place_of(name)) is not None}


def place_of(name: str) -> str | None:
    """The file of the project that `module` or `module.name` stands for."""
    base, parent = (module.replace(".", "/") for module in (name, name.rpartition(".")[0]))
    places = (f"{base}.py", f"{base}/__init__.py", f"{parent}.py", f"{parent}/__init__.py")
    return next((place for place in places if place in TREES), None)


def is_allowed(place: str, imported: str) -> bool:
    room, other = (path.partition("/")[0].removesuffix(".py") for path in (place, imported))
    return other in MAY_IMPORT[room] or bool(EXCEPTIONS & {(room, other), (place, other), (place, imported)})


@pytest.mark.parametrize("place", TREES)
def test_imports_point_one_way(place):
    assert [other for other in imports(TREES[place]) if not is_allowed(place, other)] == []


def test_no_imports_make_a_circle():
    graph = {place: imports(tree) - {place} for place, tree in TREES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(TREES)  # else it raises CycleError, and names one


ORDINARY_WORDS = {"training", "random"}
"""Names of algorithms that are used otherwise as well."""
SWITCHES = {"hc_iter", "random_subnet", "smart_ratio"}
"""What the options may name: the default, and the algorithms that published files have options of their own for."""


@pytest.mark.parametrize("place", [place for place in TREES if not place.startswith("trainers/algorithms/")])
def test_nothing_outside_algorithms_knows_an_algorithms_name(place):
    strings = {node.value for node in ast.walk(TREES[place]) if isinstance(node, ast.Constant)}
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


def test_a_new_algorithm_is_one_file_and_one_row(tmp_path):
    project = tmp_path / "project"
    for room in (*ROOMS, "configs"):
        shutil.copytree(PROJECT / room, project / room, ignore=shutil.ignore_patterns("__pycache__", "datasets"))
    for file in ("main.py", "args_helper.py"):
        shutil.copy(PROJECT / file, project)
    table = project / "trainers" / "algorithms" / "__init__.py"
    table.with_name("smallest.py").write_text(SCRATCH)
    row = '    "smallest": Algorithm(f"{_HERE}.smallest:find_ticket", "smallest magnitude"),\n'
    table.write_text(table.read_text().replace("ALGORITHMS = {\n", f"ALGORITHMS = {{\n{row}"))

    def run(*words: str) -> str:
        command = [sys.executable, "main.py", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = ["--algo", "smallest", *SMALL, "--fine_tune_epochs", "1"]
    assert "smallest " in run("--list", "algorithms")
    assert "fine-tuning  1 epoch" in run(*asked, "--dry_run")
    assert "sanity checks" in run(*asked)
    assert json.loads((project / "results" / "trial_1" / "summary.json").read_text())["algo"] == "smallest"
    run("--report", "results")
    assert "smallest" in (project / "results" / "report" / "report.md").read_text()


def test_imports_are_seen_wherever_they_stand():
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trainers.training.loop\nelse:\n    pass\n"
        "def f():\n    from models.layers import Round\n    import data, utils.masks\nfrom utils import files\n"
    )
    assert imports(ast.parse(code)) == {"models/layers.py", "data/__init__.py", "utils/masks.py", "utils/files.py"}
