"""Search for the options of a run that do best on validation, in one Optuna study that all workers share."""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import partial
from itertools import product
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from args_helper import config_of
from trainers.sweeping.config_files import write_found
from trainers.sweeping.grid import Trials
from trainers.sweeping.metrics import accuracies, is_below_median, misses_target
from trainers.sweeping.plan import Planned, label
from trainers.sweeping.sweep_file import Options, Study, named
from trainers.sweeping.units import WORKER, Claims, Task, Unit
from utils.errors import UserError
from utils.files import read_json


class Search:
    """The search in one run of a sweep, followed by the trials with the best options.

    A trial of the study is one run, with the study's seed. The values it draws depend only on the seed, its number and
    the results reported before. So an interrupted study resumes as if it had not been interrupted, and one worker
    draws the same values every time.

    Args:
        planned: the run, with the options to search for.
        settings: of the search.
        claims: shared by all workers; its folder holds the journal.
    """

    def __init__(self, planned: Planned, settings: Study, claims: Claims) -> None:
        self.name = planned.name
        self.over = False
        self.found: Trials | None = None
        self.outcome = ""
        self._planned, self._settings, self._claims = planned, settings, claims
        sought = {name: space._asdict() for name, space in planned.sought.items()}
        task = [planned.config.config_hash, sought, settings.metric, settings.seed, settings.tolerance]
        spaces, combinations = planned.sought.values(), planned.combinations(settings.trials)
        self._is_listed, self._count = combinations is not None, combinations or settings.trials
        self._key = hashlib.sha256(json.dumps(task, default=str).encode()).hexdigest()[:6]
        with claims.exclusive("journal"):
            self._study = _study(claims.folder / "journal.log", f"{self.name} ({self._key})")
            # Every combination is run once, where that takes no more trials than there are.
            for values in product(*(map(label, space.values) for space in spaces)) if self._is_listed else ():
                self._study.enqueue_trial(dict(zip(planned.sought, values)), skip_if_exists=True)

    # ---- the next run ----------------------------------------------------------------------------------------------

    def take(self) -> Task | None:
        """Claim the next run: one that a worker abandoned, or a new one; None: other workers have claimed the rest."""
        if self.found is None and not self.over:
            with self._claims.exclusive(f"{self.name} {self._key}"):
                if (task := self._next()) is not None:
                    return task
        task = self.found.take() if self.found else None
        self.over = self.over or (self.found is not None and self.found.over)
        return task

    def _next(self) -> Task | None:
        """Claim an abandoned trial or begin another; conclude the search once all its trials have ended.

        A trial is RUNNING in the study from its draw to its result, whether or not a process still works on it: only
        the claim tells. A trial left over because its run failed does not keep the search from its end.
        """
        trials = self._study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for trial in running:
            own = Trial(self._study, trial._trial_id)  # no public function gives a trial that another process began
            if (task := self._claimed(own)) is not None:
                return task
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        for _ in range(waiting if self._is_listed else self._count - (len(trials) - waiting)):
            trial = self._study.ask()
            if not self._settled_by_repetition(trial) and (task := self._claimed(trial)) is not None:
                return task
        left = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if all(self._unit_name(trial.number) in self._claims.problems for trial in left):
            self._conclude()
        return None

    def _unit_name(self, number: int) -> str:
        return f"{self.name}/search_{self._key}/{number:03d}"

    def _state(self, trial: Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _claimed(self, trial: Trial) -> Task | None:
        """Claim a trial and return its task; None: another worker has claimed it, or it cannot be run."""
        params = self._drawn(trial)
        try:
            unit = self._unit(params, trial.number)
        except UserError as error:  # each value is allowed, but not together with the others
            trial.set_user_attr("problem", str(error))
            self._study.tell(trial.number, state=TrialState.FAIL)
            return None
        claim = self._claims.claim(unit)
        if claim is None:
            return None
        if self._state(trial).state != TrialState.RUNNING:  # its result was reported just before its claim was released
            claim.release()
            return None
        for name, value in {"folder": str(unit.folder), "worker": WORKER}.items():
            trial.set_user_attr(name, value)
        chosen = ", ".join(f"{name} {value}" for name, value in params.items())
        heading = f"{self.name}, search {trial.number + 1} of {self._count}: {chosen}"
        watched = partial(self._should_stop_early, trial, unit)
        return Task(unit, claim, heading, watched, partial(self._tell, trial, unit), partial(self._give_up, trial))

    def _drawn(self, trial: Trial) -> Options:
        """Return the values of a trial; draw those that it does not have yet.

        The sampler is made anew for each trial, with a seed of its own: it then has no state that a restart would lose.
        """
        seed = hashlib.sha256(f"{self._settings.seed}/{trial.number}".encode()).digest()
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=self._settings.startup, seed=int.from_bytes(seed[:4], "little")
        )
        return {name: space.suggested(trial, name) for name, space in self._planned.sought.items()}

    def _unit(self, params: Options, number: int) -> Unit:
        """Raises: UserError: these values contradict one another."""
        untrained = self._settings.metric == "val_acc_before_finetune"
        options = {
            **self._planned.options, **params, "seed": self._settings.seed, "trial_num": 1, "num_trial": 1,
            "with_dense": False, "skip_sanity_checks": True, "skip_fine_tune": untrained,
            "name": self._unit_name(number),
        }  # fmt: skip
        return Unit.of(options["name"], config_of(options, f"{self._planned.source}, search"))

    def _settled_by_repetition(self, trial: Trial) -> bool:
        """Report for a new trial the result of an earlier one with the same values, if there is one."""
        params = self._drawn(trial)
        for other in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if self._values(other) == params:
                trial.set_user_attr("same_as", other.number)
                complete = other.state == TrialState.COMPLETE
                trial.set_user_attr("missed", other.user_attrs.get("missed"))
                self._study.tell(trial.number, other.value if complete else None, other.state)
                return True
        return False

    def _values(self, trial: FrozenTrial) -> Options:
        return {name: self._planned.sought[name].as_written(value) for name, value in trial.params.items()}

    # ---- during and after a run ------------------------------------------------------------------------------------

    def _should_stop_early(self, trial: Trial, unit: Unit) -> bool:
        """Report each new epoch to the study; return whether one of them should end the run."""
        known = set(self._state(trial).intermediate_values)
        reported = self._report(trial, unit)
        finished = [
            one.intermediate_values
            for one in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if one.intermediate_values and not one.user_attrs.get("missed")
        ]
        begin = self._settings.first_stop * max((max(values) for values in finished), default=0)
        return self._settings.pruner == "median" and any(
            is_below_median(
                {at: reported[at] for at in reported if begin < at <= epoch}, finished, self._settings.startup
            )
            for epoch in reported
            if epoch > begin and epoch not in known
        )

    def _report(self, trial: Trial, unit: Unit) -> dict[int, float]:
        """Report each new epoch to the study; return the accuracies of all reported ones."""
        reported = dict(self._state(trial).intermediate_values)
        for epoch, accuracy in enumerate(accuracies(unit, self._settings.metric), start=1):
            if epoch not in reported:
                trial.report(accuracy, epoch)
                reported[epoch] = accuracy
        return reported

    def _tell(self, trial: Trial, unit: Unit, ended_early: bool) -> None:
        """Report the result of a run that has ended: a run that has finished counts, however low its curve was."""
        self._report(trial, unit)
        if ended_early:
            self._study.tell(trial.number, state=TrialState.PRUNED)
            print(f"== ended early: {unit.name} is below the median of the others", flush=True)
            return
        summary = read_json(unit.folder / "summary.json")
        value = summary[self._settings.metric]
        if value is None:
            raise UserError(f"{unit.folder}: {self._settings.metric} was not measured, by which the search would go")
        missed = misses_target(summary, unit.config, self._settings.tolerance)
        trial.set_user_attr("missed", missed)
        self._study.tell(trial.number, 0.0 if missed else value)  # it has no accuracy at the target density

    def _give_up(self, trial: Trial) -> bool:
        """Report that a run diverged; return False: the search learns from it, so it is no failure."""
        self._study.tell(trial.number, state=TrialState.PRUNED)
        return False

    # ---- the result ------------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Write the best options to a config, and prepare their trials."""
        trials = self._study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        good = [trial for trial in complete if not trial.user_attrs.get("missed")]
        if not good:
            refused = (trial.user_attrs["problem"] for trial in trials if "problem" in trial.user_attrs)
            why = complete[0].user_attrs["missed"] if complete else next(refused, "no run ended well")
            self._claims.problems[self.name] = f"{self.name}: the search found nothing: {why}"
            self.over = True
            return
        best = max(good, key=lambda trial: (trial.value, -trial.number))
        values = self._values(best)
        name = named(self.name, values)
        options = {**self._planned.options, **values, "name": name}
        config = config_of(options, f"{self._planned.source}, found")
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        run = [trial for trial in ended if "same_as" not in trial.user_attrs]
        early = sum(trial.state == TrialState.PRUNED for trial in run)
        chosen = ", ".join(f"{option} {value}" for option, value in values.items())
        how = (
            f"{chosen}: {self._settings.metric} {best.value:.2f}%, the best of {len(run)} runs "
            f"({early} ended early) with seed {self._settings.seed}"
        )
        path = write_found(self._claims.folder, self.name, config, how)
        self.outcome = f"{self.name}: {how}\n  python main.py --config {shlex.quote(str(path))}"
        if self._settings.confirm:
            self.found = Trials(name, config, self._claims)
        else:
            self.over = True


def _study(journal: Path, name: str) -> optuna.Study:
    """Create the study of this name, or join it.

    Raises:
        UserError: the journal cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
        return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except (OSError, ValueError) as error:  # such as a line that a full disk cut short
        raise UserError(f"cannot read {journal}: {error}; to search anew, move its folder away") from error
