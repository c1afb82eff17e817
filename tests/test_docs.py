"""The guides: their links, the commands and configs they show, and that they name everything there is."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from args_helper import DECLARED, OPTIONS, parse_args
from data import DATASETS
from models import MODELS
from tests.conftest import PROJECT
from trainers.algorithms import ALGORITHMS
from trainers.sweeping.plan import plan

FOLDERS = ("configs", "data", "models", "tests", "trainers", "utils")
DOWNLOADED = PROJECT / "data" / "datasets"
INSIDE = [path for name in FOLDERS for path in (PROJECT / name).rglob("*.md") if DOWNLOADED not in path.parents]
GUIDES = sorted([*PROJECT.glob("*.md"), *INSIDE])
FLAGS = {"help", *OPTIONS, *DECLARED.canonical}
MOST_LINES = 170


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _prose(text: str) -> str:
    """A text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# ---- links ---------------------------------------------------------------------------------------------------------


def _links(text: str) -> list[str]:
    """Where the links and images of a text lead, those to other sites left out."""
    plain = re.sub(r"`[^`]*`", "code", _prose(text))
    return re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", plain)


def _anchors(text: str) -> set[str]:
    """The anchors of a text's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _broken(path: Path, target: str) -> bool:
    where, _, anchor = target.partition("#")
    found = path.parent / (where or path.name)
    return not found.exists() or (bool(anchor) and anchor not in _anchors(_text(found)))


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_every_link_leads_to_something_that_exists(path):
    assert [target for target in _links(_text(path)) if _broken(path, target)] == []


def test_broken_links_are_found(tmp_path):
    path = tmp_path / "guide.md"
    path.write_text("# One's *own*\n[a](#ones-own) ![b](no.png) [c](guide.md#two) `[d](no)` [e](https://x)\n")
    assert [target for target in _links(_text(path)) if _broken(path, target)] == ["no.png", "guide.md#two"]


def test_the_readme_leads_to_every_guide_and_is_short():
    text = _text(PROJECT / "README.md")
    linked = {os.path.normpath(target.partition("#")[0]) for target in _links(text)}
    assert {_name(path) for path in GUIDES} - {"README.md"} <= linked
    own = re.sub(r"<!-- results: begin -->.*<!-- results: end -->\n", "", text, flags=re.DOTALL)
    assert len(own.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("guide", "names"),
    [("README.md", ALGORITHMS), ("trainers/algorithms/README.md", ALGORITHMS), ("data/README.md", DATASETS),
     ("models/README.md", MODELS)],
)  # fmt: skip
def test_a_guide_names_all_there_is(guide, names):
    assert [name for name in names if f"`{name}`" not in _text(PROJECT / guide)] == []


# ---- commands ------------------------------------------------------------------------------------------------------


def _commands(text: str) -> list[tuple[str, list[str]]]:
    """(main.py or a module, its words) for each command of a text's shell blocks that starts the tool."""
    lines = "\n".join(_blocks(text, "bash")).replace("\\\n", " ").splitlines()
    started = r"(?:python -m (?!pytest)(\S+)|(?:python |torchrun .*)(main\.py)|\./(?:cifar|imp)_exec\.sh)(.*)"
    found = [re.search(started, re.sub(r"\s#.*", "", line)) for line in lines]
    return [(one[1] or "main.py", one[3].split()) for one in found if one]


def _flags_of(started: str) -> set[str]:
    """The long options that a command takes; a module's own are those that it declares."""
    if started == "main.py":
        return FLAGS
    origin = Path(find_spec(started).origin)
    sources = sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
    own = {flag for source in sources for flag in re.findall(r'add_argument\("--([\w-]+)"', _text(source))}
    own = {flag.replace("-", "_") for flag in own}
    return own | (FLAGS if started == "trainers.benchmark" else set())


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_every_option_and_config_of_a_command_exists(path):
    shown = {block.splitlines()[0] for guide in GUIDES for block in _blocks(_text(guide), "yaml")}
    for started, words in _commands(_text(path)):
        flags = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
        assert flags - _flags_of(started) == set(), started
        configs = [word for word in words if word.startswith("configs/")]
        assert [one for one in configs if not (PROJECT / one).is_file() and f"# {one}" not in shown] == []


def test_commands_are_found_with_their_options():
    lines = ["torchrun --x=1 \\", "  main.py --lr 1  # --no", "python -m a.b --c d & wait", "./imp_exec.sh --lr 2", ""]
    found = _commands("```bash\n" + "\n".join(lines) + "```\n")
    assert found == [("main.py", ["--lr", "1"]), ("a.b", ["--c", "d", "&", "wait"]), ("main.py", ["--lr", "2"])]
    assert sum(len(_commands(_text(path))) for path in GUIDES) > 20
    assert {"kills", "seed"} == _flags_of("tests.faults")
    assert {"repeats", "only", "lr"} <= _flags_of("trainers.benchmark")


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_every_config_can_be_read(path, tmp_path):
    shown = tmp_path / "shown.yml"
    for block in _blocks(_text(path), "yaml"):
        shown.write_text(block, encoding="utf-8")
        if "runs" in yaml.safe_load(block):
            plan(shown, {})
        else:
            parse_args(["--config", str(shown)])
