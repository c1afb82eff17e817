"""Kill runs at random moments, resume them, and compare their results with those of undisturbed runs.

    python -m tests.faults --kills 200

Every scenario runs once undisturbed. Then it runs again and again; each time it is killed (SIGKILL) up to three times
and resumed by `--resume`. Its results must be the same to the bit, except for times: weights, scores, masks, tables and
summary. Half of the kills come at a random moment of the whole run, half in a random stage and kind of work, so that
short ones (a pruning, a half-written checkpoint) are hit as often as long ones.
"""

import argparse
import itertools
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any

import main
import trainers.algorithms.gem_miner as gem_miner
import trainers.pipeline
import trainers.training.loop as loop
import trainers.training.scores as scores
import trainers.training.weights as weights
from tests.conftest import SMALL, same_bits, timeless
from utils.errors import UserError
from utils.run.progress import Progress
from utils.run.run import Run

SCENARIOS = {
    "gem_miner": "--unflag_before_finetune",
    "gem_miner, adam, often stored": "--optimizer adam --accumulate 2 --checkpoint_every 0.05s --skip_sanity_checks",
    "imp": "--algo imp --iter_period 2 --imp_rounds 3 --imp_rewind_iter 3 --prune_rate 0.4",
    "cts": "--algo cts --rewind_epoch 1 --skip_sanity_checks",
}
PLACES = ("between", "a step", "an evaluation", "a pruning", "writing a file", "replacing a file")
STAGES = ("before", "search", "finetune", "check", "after")
MOST_KILLS = 3


class Marks:
    """What a child process is doing, stored in memory that it shares with its parent."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2)

    def put(self, index: int, value: int) -> None:
        self._memory[index] = value

    def read(self) -> tuple[str, str]:
        """Return the stage and the kind of work."""
        return STAGES[self._memory[0]], PLACES[self._memory[1]]

    def while_in(self, place: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that it marks this kind of work while it runs."""

        def marked(*args: Any, **options: Any) -> Any:
            outer = self._memory[1]
            self.put(1, PLACES.index(place))
            try:
                return function(*args, **options)
            finally:
                self.put(1, outer)

        return marked

    def instrument(self) -> None:
        """Mark all work of this process from now on."""
        loop.train_step = self.while_in("a step", loop.train_step)
        for module in (scores, weights, trainers.pipeline):
            module.evaluate = self.while_in("an evaluation", module.evaluate)
        gem_miner.GemMiner._prune = self.while_in("a pruning", gem_miner.GemMiner._prune)
        os.fsync = self.while_in("writing a file", os.fsync)
        os.replace = self.while_in("replacing a file", os.replace)
        begin = Run.progress

        def progress(run: Run, stage: str, *rest: Any) -> Any:
            self.put(0, STAGES.index(stage.partition("/")[0]))
            return begin(run, stage, *rest)

        Run.progress = progress


def begin(words: list[str], log: Path, marks: Marks) -> int:
    """Run the program in a child process, and return the child's process id."""
    marks.put(0, 0)
    child = os.fork()
    if child:
        return child
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    Progress.set_lock(RLock())  # the one it shares with forked processes stays locked if its holder is killed
    marks.instrument()
    os._exit(main.main(words))


def killed_on_its_way(child: int, marks: Marks, chance: random.Random, seconds: float) -> tuple[str, str] | None:
    """Kill a child at a random moment; return what it was doing, or None if it had ended before."""
    deadline = time.monotonic() + chance.uniform(0, seconds)
    stages, places = (None, *STAGES[1:4]), (None, *PLACES[1:])
    wanted = (chance.choice(stages), chance.choice(places)) if chance.random() < 0.5 else (None, None)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise UserError(f"a run ended with exit code {os.waitstatus_to_exitcode(status)}")
            return None
        stage, place = marks.read()
        is_there = wanted[0] in (None, stage) and wanted[1] in (None, place)
        if time.monotonic() >= deadline and is_there:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return stage, place
        if wanted[1] is None:
            time.sleep(0.0005)


def undisturbed(words: list[str], place: Path) -> float:
    """Run to the end, and return the seconds it took."""
    started = time.monotonic()
    _, status = os.waitpid(begin(words, place / "log", Marks()), 0)
    if status:
        raise UserError(f"the undisturbed run failed:\n{(place / 'log').read_text()}")
    return time.monotonic() - started


def disturbed(words: list[str], place: Path, chance: random.Random, seconds: float) -> Counter[tuple[str, str]]:
    """Run to the end with kills on the way; return how often it was killed in which stage and work."""
    kills: Counter[tuple[str, str]] = Counter()
    folder, marks = place / "results" / "trial_1", Marks()

    def go_on() -> list[str]:
        return ["--resume", str(folder)] if (folder / "config.yml").exists() else words

    for _ in range(chance.randint(1, MOST_KILLS)):
        doing = killed_on_its_way(begin(go_on(), place / "log", marks), marks, chance, seconds / (1 + len(kills)))
        if doing is None:
            break
        kills[doing] += 1
    if not (folder / "summary.json").exists():
        undisturbed(go_on(), place)
    return kills


def run(kills: int, seed: int, root: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Kill runs at least `kills` times over all scenarios.

    Returns:
        How often each kind of work was interrupted, and the runs with other results: none, unless something is wrong.
    """
    chance, names = random.Random(seed), itertools.cycle(SCENARIOS)
    wholes = {}
    for name in SCENARIOS:
        place = root / f"whole {name}"
        place.mkdir(parents=True)
        seconds = undisturbed(_words(name, place), place)
        wholes[name] = (timeless(place / "results" / "trial_1"), seconds)
    done: Counter[tuple[str, str]] = Counter()
    lost = []
    while done.total() < kills:
        name, place = next(names), Path(tempfile.mkdtemp(dir=root))
        whole, seconds = wholes[name]
        told = disturbed(_words(name, place), place, chance, seconds)
        done += told
        if same_bits(timeless(place / "results" / "trial_1"), whole):
            shutil.rmtree(place)
        else:
            lost.append(f"{name}, {place}: killed in {dict(told)}")
        print(f"\r{done.total()} of {kills} kills", end="", file=sys.stderr, flush=True)
    return done, lost


def _words(name: str, place: Path) -> list[str]:
    """The command line of a scenario."""
    return [*SMALL, *SCENARIOS[name].split(), "--results_dir", str(place / "results"), "--log_dir", str(place / "runs")]


def table(done: Counter[tuple[str, str]]) -> str:
    """Format the kills by stage and kind of work, as Markdown."""
    lines = [f"| killed in | {' | '.join(STAGES)} | together |", "|---" * (len(STAGES) + 2) + "|"]
    for place in PLACES:
        counts = [done[stage, place] for stage in STAGES]
        lines.append(f"| {place} | {' | '.join(map(str, counts))} | {sum(counts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill runs at random moments, and see whether anything is lost.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        done, lost = run(given.kills, given.seed, Path(scratch))
    print(f"\n{table(done)}")
    print(f"{done.total()} kills, {len(lost)} runs that came to another end", *lost, sep="\n")
    sys.exit(bool(lost))
