"""The report: what it reads in run folders, how it groups runs, what stands in its tables, and where it is written."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from args_helper import config_of
from tests.conftest import SMALL
from tests.run_folders import make_run, make_trials
from trainers.checks.verdict import judge
from trainers.reporting.contents import Contents, totals
from trainers.reporting.gather import DAMAGED, GOING_ON, gather
from trainers.reporting.page import File, Part, Report, Section
from trainers.reporting.published import PUBLISHED, beside_published, published_for
from trainers.reporting.report import write_report
from trainers.reporting.series import Series, Task, family_of, tasks_of
from trainers.reporting.tables import formatted, prefixed
from trainers.results.summary import Outcome, Spent
from trainers.results.trials import Spread
from utils.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def only_task(root: Path) -> Task:
    runs, problems = gather([root])
    assert not problems
    (task,) = tasks_of(runs)
    return task


def names(root: Path) -> list[str]:
    return [one.name for one in only_task(root).series]


# ---- figures over trials -------------------------------------------------------------------------------------------


def test_a_spread_is_mean_and_sample_deviation_of_what_is_known() -> None:
    assert Spread.of([78, 80, None, 82]) == (80, 2, 3)
    assert Spread.of([80]) == (80, None, 1)
    assert Spread.of([None]) == (None, None, 0)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".2f", "–"), (-1.005, "+.1f", "−1.0"), (2.5, "+.2f", "+2.50"), (58846399488, "si", "58.8 G"),
        (999.7, "si", "1 k"), (0, "si", "0"), (1e19, "si", "10 E"),
    ],
)  # fmt: skip
def test_figures_are_written_alike_everywhere(value: float | None, form: str, text: str) -> None:
    assert formatted(value, form) == text


def test_trials_of_an_experiment_are_summed_up_and_a_single_one_has_no_deviation(root: Path) -> None:
    make_trials(root, "three", [78, 80, 82], algo="snip", target_sparsity=5)
    make_trials(root, "one", [70], algo="snip", target_sparsity=1)
    table = Contents(only_task(root), root / "report").accuracy()
    three, one = table.rows
    assert (three["after_mean"], three["after_sd"], three["n"]) == (80, 2, 3)
    assert (one["after_mean"], one["after_sd"], one["n"]) == (70, None, 1)
    after = next(column for column in table.columns if column.heading.startswith("after"))
    assert [after.show(row) for row in table.rows] == ["80.00 ± 2.00", "70.00"]


def test_a_check_is_judged_as_everywhere_over_the_trials_that_ran_it(root: Path) -> None:
    tickets, controls = [90, 91, 92], [85, 86.5, 86.5]
    make_trials(root, "a", tickets, algo="snip", target_sparsity=5, check_mask_shuffle=controls)
    make_run(root / "a" / "trial_4", 10.0, algo="snip", target_sparsity=5, trial_num=4, name="a")  # has no checks
    (row,) = Contents(only_task(root), root).checks().rows
    verdict = judge(tickets, controls)
    assert (row["margin"], row["low"], row["high"], row["n"]) == (verdict.margin, verdict.low, verdict.high, 3)
    assert (row["verdict"], row["ticket_mean"], row["check_accuracy_mean"]) == ("passes", 91, 86)


def test_an_inverted_run_is_beside_the_one_that_it_inverts(root: Path) -> None:
    make_run(root / "inverted", 40.0, invert_sanity_check=True, says_inverts={"test_acc_after_finetune": 90.0})
    (row,) = Contents(only_task(root), root).checks().rows
    figures = [row[key] for key in ("check", "ticket_mean", "check_accuracy_mean", "margin", "verdict")]
    assert figures == ["score_inversion", 90, 40, 50, "undecided"]


def test_costs_are_those_of_search_and_fine_tuning_together(root: Path) -> None:
    make_run(root / "a")
    (run,), _ = gather([root])
    assert totals(run.outcome.cost) == {
        "epochs": 4, "search_epochs": 2, "flops_dense": 6007, "flops_masked": 1207, "seconds": 3,
        "peak_memory_bytes": 5000,
    }  # fmt: skip


def test_layers_are_in_percent_of_their_own_weights(root: Path) -> None:
    make_run(root / "a")
    (experiment,) = only_task(root).series[0].experiments
    assert {name: one.mean for name, one in experiment.layers.items()} == pytest.approx({"conv1": 80, "fc": 200 / 90})


# ---- series --------------------------------------------------------------------------------------------------------


def test_densities_of_one_setting_are_one_series_and_another_setting_is_another(root: Path) -> None:
    for place, options in enumerate(({"lmbda": 0.1}, {"lmbda": 0.2})):
        for target in (1, 5):
            make_run(root / f"{place}_{target}", algo="hc", target_sparsity=target, **options)
    series = only_task(root).series
    assert [one.name for one in series] == ["hc, lmbda 0.1", "hc, lmbda 0.2"]
    assert [[one.density for one in each.experiments] for each in series] == [[5, 1], [5, 1]]


def test_runs_of_a_sweep_are_called_after_it_though_more_than_density_differs(root: Path) -> None:
    for target, lmbda in ((5, 0.2), (1.5, 0.1)):
        name = f"gem/target_sparsity_{target}"
        make_run(root / name, algo="hc", subfolder="digits", name=name, target_sparsity=target, lmbda=lmbda)
    make_run(root / "dense", algo="training", subfolder="digits", name="dense", target_sparsity=100)
    dense, gem = only_task(root).series
    assert (dense.name, gem.name) == ("dense", "gem")
    assert (dense.is_dense, gem.also_differs) == (True, {"lmbda": ["0.2", "0.1"]})


def test_two_settings_at_one_density_under_one_name_do_not_fall_together(root: Path) -> None:
    for seed in (1, 2):
        make_run(root / str(seed) / "a", algo="snip", name="x/target_sparsity_5", target_sparsity=5, seed=seed)
    assert sorted(len(one.experiments) for one in only_task(root).series) == [1, 1]
    assert len(set(names(root))) == 2


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({"subfolder": "resnet20_sparsity_1_44_unflagT", "target_sparsity": 1.44}, "resnet20_unflagT"),
        ({"subfolder": "mobilenetv2_ep_20", "target_sparsity": 20}, "mobilenetv2_ep"),
        ({"subfolder": "s", "name": "imp/target_sparsity_0.5/lmbda_5", "target_sparsity": 0.5}, "s/imp/lmbda_5"),
        ({"subfolder": "resnet20", "target_sparsity": 20}, None),
        ({"name": "run_15", "target_sparsity": 5}, None),
        ({"name": "5_run", "target_sparsity": 5}, "run"),
        ({"name": "_5_/x", "target_sparsity": 5}, "_/x"),
        ({}, None),
    ],
)
def test_the_family_is_the_place_without_the_density(options: dict, family: str | None) -> None:
    assert family_of(config_of(options, "a test")) == family


def test_every_task_has_a_section_of_its_own(root: Path) -> None:
    make_run(root / "a", algo="snip")
    make_run(root / "b", algo="snip", width=0.5)
    make_run(root / "c", algo="snip", dataset="MNIST", seed=7)
    assert [task.title for task in tasks_of(gather([root])[0])] == [
        "resnet20 on Digits", "resnet20 on Digits (width 0.5)", "resnet20 on MNIST",
    ]  # fmt: skip


# ---- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"), ("[]", "valid dictionary"), ('{"config_hash": "x"}', "classes: Field required"),
        ('{"config_hash": "x", "trial": 1, "classes": 10, "weights_total": 5, "weights_remaining_percent": NaN}',
         "finite number"),
        ('{"config_hash": "x", "trial": 1, "classes": 10, "weights_total": 5, "weights_remaining_percent": 500}',
         "less than or equal to 100"),
    ],
)  # fmt: skip
def test_a_damaged_summary_is_told_of_and_stops_nothing(root: Path, content: str, said: str) -> None:
    make_run(root / "good", algo="snip")
    broken = make_run(root / "broken", algo="snip", target_sparsity=7)
    (broken / "summary.json").write_text(content)
    runs, (problem,) = gather([root])
    assert {run.folder.name: run.state for run in runs} == {"good": "finished", "broken": DAMAGED}
    assert problem.folder == broken
    assert said in problem.text


@pytest.mark.parametrize(
    ("cut", "used", "said"),
    [
        ("57,,6", 6, "cut off"),
        ("x,1,2\n", 6, "missing"),
        ("search,6,0.1,,57,,\n", 6, "missing"),
        ("", 6, None),
        ("finetune,6,0.1,,10,,9,nan,0,14,0.2\n", 7, None),
    ],
)
def test_a_table_of_epochs_is_read_up_to_where_it_is_damaged(root: Path, cut: str, used: int, said: str | None) -> None:
    table = make_run(root / "a", None, rows=6) / "acc_and_sparsity.csv"
    table.write_text(table.read_text() + cut)
    (run,), problems = gather([root])
    assert (run.state, len(run.epochs), run.epochs[5].test_acc) == (GOING_ON, used, 55)
    assert [said in problem.text for problem in problems] == ([] if said is None else [True])


def test_a_config_that_cannot_be_read_leaves_its_run_out(root: Path) -> None:
    make_run(root / "good")
    (make_run(root / "bad", algo="snip") / "config.yml").write_text("nonsense: 1\n")
    (make_run(root / "none", algo="grasp") / "config.yml").unlink()
    runs, problems = gather([root])
    assert [run.folder.name for run in runs] == ["good"]
    assert [problem.folder.name for problem in problems] == ["bad", "none"]


def test_a_config_that_is_not_its_summarys_is_told_of(root: Path) -> None:
    config = make_run(root / "a") / "config.yml"
    config.write_text(config.read_text().replace("\nlr: 0.001\n", "\nlr: 0.5\n"))
    (run,), (problem,) = gather([root])
    assert "summary.json tells of" in problem.text
    assert run.config_hash == run.outcome.config_hash


def test_a_copy_is_no_second_trial_and_the_finished_one_counts(root: Path) -> None:
    make_run(root / "a", None)
    make_run(root / "b", 80.0)
    runs, (problem,) = gather([root, root / "b"])  # and the same folder given twice is no copy
    assert [run.folder.name for run in runs] == ["b"]
    assert problem.folder.name == "a"


# ---- the paper -----------------------------------------------------------------------------------------------------

GEM = {
    "algo": "hc_iter", "dataset": "CIFAR10", "hc_quantized": True, "unflag_before_finetune": True, "epochs": 150,
    "iter_period": 5,
}  # fmt: skip


def beside(root: Path, **options: object) -> list[dict]:
    """The rows of the paper's figures that a run is set beside."""
    make_run(root / "a", 80.0, says_checks={"mask_shuffle": {"test_acc_after_finetune": 70.0}}, **options)
    (task,) = tasks_of(gather([root])[0])
    experiments = [one for series in task.series for one in series.experiments]
    return [row for row in beside_published(experiments, published_for(task.config)) if row["n"]]


def test_a_run_is_set_beside_the_papers_figures_for_its_ticket_and_its_checks(root: Path) -> None:
    ticket, shuffled = beside(root, **GEM, target_sparsity=3.72, lr=0.1)
    assert (ticket["paper"], ticket["ours_mean"], ticket["ours_sd"]) == (83.4, 80, None)
    assert ticket["difference"] == pytest.approx(-3.4)
    assert (shuffled["paper"], shuffled["difference"]) == (78.73, pytest.approx(70 - 78.73))
    assert "lmbda 3e-05 → 0.001" in ticket["differs_in"]
    assert not re.search(r"\blr |seed|target", ticket["differs_in"])


def test_the_papers_figures_stand_in_the_table_whether_or_not_there_is_a_run(root: Path) -> None:
    make_trials(root, "gem", [82, 83, 84], **GEM, target_sparsity=3.72)
    table = Contents(only_task(root), root).paper()
    lines = table.markdown().splitlines()[2:]
    assert len(lines) == len(table.rows) == len(PUBLISHED)
    assert "| 83.40 | 3.72 | 83.00 ± 1.00 | −0.40 | 3 |" in lines[0]
    assert "| 77.89 | – | – | – | 0 |" in lines[3]
    assert all(isinstance(column.show(row), str) for row in table.rows for column in table.columns)


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({"target_sparsity": 1.41}, [77.89]),
        ({"target_sparsity": 1.44, "epochs": 2800}, [79.50]),  # nearer to the long search
        ({"target_sparsity": 1.3}, []),  # too far from any density of the paper's
        ({"target_sparsity": 1.44, "hc_quantized": False}, []),
        ({"target_sparsity": 1.44, "invert_sanity_check": True}, []),
        ({"target_sparsity": 0.59}, [66.15, 45.30]),
        ({"target_sparsity": 1.44, "algo": "imp"}, []),  # quantised scores are not IMP's
        ({"target_sparsity": 1.44, "algo": "imp", "hc_quantized": False, "unflag_before_finetune": False}, [74.52]),
        ({"target_sparsity": 1.44, "algo": "imp", "hc_quantized": False, "unflag_before_finetune": False,
          "imp_no_rewind": True}, [80.21]),
        ({"target_sparsity": 1.44, "dataset": "CIFAR100"}, []),
        ({"target_sparsity": 1.44, "arch": "resnet32"}, []),
    ],
)  # fmt: skip
def test_only_an_attempt_at_the_same_thing_is_compared(root: Path, options: dict, figures: list[float]) -> None:
    assert [row["paper"] for row in beside(root, **{**GEM, **options})] == figures


def test_an_image_folder_is_not_cifar_10(root: Path, tmp_path: Path) -> None:
    assert beside(root, **{**GEM, "dataset": "ImageFolder", "data": str(tmp_path)}, target_sparsity=1.44) == []


def test_every_figure_of_the_paper_names_a_setting_that_is_there() -> None:
    for one in PUBLISHED:
        assert one.config.dataset == "CIFAR10"
        assert one.config.target_sparsity == pytest.approx(one.density, rel=0.05)


# ---- the report as a whole -----------------------------------------------------------------------------------------


def test_a_report_of_runs_finished_going_on_and_damaged(root: Path, call) -> None:
    make_trials(root, "dense", [96, 97, 98], algo="training", target_sparsity=100)
    make_trials(root, "snip/target_sparsity_5", [90, 91, 92], algo="snip", target_sparsity=5,
                check_weight_reinit=[80, 82, 81])  # fmt: skip
    make_run(root / "running", None, algo="grasp", rows=5)
    (make_run(root / "broken", algo="synflow") / "summary.json").write_text("{")
    outcome = call("--report", root)
    assert outcome.code == 0
    assert f"{root / 'report' / 'report.html'}" in outcome.out
    assert "broken" in outcome.err
    home = root / "report"
    page, told = (home / "report.html").read_text(), (home / "report.md").read_text()
    for text in (page, told):
        assert "91.00 ± 1.00" in text
        assert "broken" in text
        assert "1 (going on)" in text or "1 \\(going on" in text
    assert not re.search(r'(src|href)="(https?:)?//', page)
    links = set(re.findall(r'href="(\.\.[^"]*)"', page))
    assert len(links) == 2 * 8  # every run's folder, and its options
    assert all((home / link).exists() for link in links)
    (table,) = home.glob("tables/*_accuracy.csv")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert {row["series"] for row in rows} == {"dense", "snip", "grasp", "synflow"}
    assert all((home / place).is_dir() for row in rows for place in row["runs"].split("; ") if place)
    kinds = sorted(path.name.rpartition("_")[2] for path in home.glob("figures/*"))
    assert kinds == sorted(f"{part}.{end}" for part in ("accuracy", "checks", "layers", "curves", "costs")
                           for end in ("png", "svg"))  # fmt: skip


def test_names_of_any_kind_are_text_and_nothing_else(root: Path, call) -> None:
    names = ["<script>alert(1)</script>", "_hidden", "$x^$", "a|b [c](javascript:d)", '"><img src=x onerror=e()>']
    for number, name in enumerate(names):
        place = root / str(number)
        make_run(
            place, algo="snip", name=f"{name}/target_sparsity_5".replace("</", "<"), target_sparsity=5, seed=number
        )
    assert call("--report", root).code == 0
    page = (root / "report" / "report.html").read_text()
    assert page.count("<script>") == 1  # its own
    assert "<img src=x" not in page
    assert "<script>" not in (root / "report" / "report.md").read_text()
    (figure,) = root.glob("report/figures/*_accuracy.svg")
    drawn = re.findall(r"<!-- *(.*) -->", figure.read_text())  # texts are drawn as shapes, each under its words
    assert {"_hidden", "$x^$", "a|b [c](javascript:d)"} <= set(drawn)


def test_a_report_is_written_over_by_the_next_and_nothing_else_is(tmp_path: Path) -> None:
    def report(*names: str) -> Report:
        files = [File(f"tables/{name}.csv", name.encode(), "table") for name in names]
        return Report("title", "about", [Section("s", "section", [], [Part("p", "part", "label", files=files)])])

    home = tmp_path / "home"
    write_report(home, report("a", "b"))
    (home / "notes.txt").write_text("mine")
    write_report(home, report("b", "c"))
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert left == {"report.html", "report.md", "report.json", "notes.txt", "tables/b.csv", "tables/c.csv"}
    (home / "tables" / "d.csv").write_text("another's")
    with pytest.raises(UserError, match=r"d\.csv is not of a report"):
        write_report(home, report("d"))
    assert (home / "tables" / "d.csv").read_text() == "another's"
    assert (home / "tables" / "b.csv").exists()


def test_a_list_of_files_of_a_report_removes_nothing_elsewhere(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other.csv"
    home.mkdir()
    other.write_text("x")
    (home / "mine.csv").write_text("x")
    listed = ["../other.csv", str(other), "tables/../../other.csv", "mine.csv", "report.json", 3]
    (home / "report.json").write_text(json.dumps({"files": listed}))
    write_report(home, Report("title", "about", []))
    assert other.exists()
    assert (home / "mine.csv").exists()


@pytest.mark.parametrize(("made", "said"), [(False, "there is no folder"), (True, "there is no run")])
def test_without_a_run_there_is_no_report(root: Path, call, made: bool, said: str) -> None:
    if made:
        root.mkdir()
    outcome = call("--report", root)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err
    assert not (root / "report").exists()


def test_runs_none_of_which_can_be_read_are_told_of(root: Path) -> None:
    (make_run(root / "a") / "config.yml").write_text("nonsense: 1\n")
    with pytest.raises(UserError, match="none of the runs can be read"):
        gather([root])


def test_a_real_run_is_read_whole(places: list[str], tmp_path: Path, call) -> None:
    assert call(*SMALL, *places, "--name", "a", "--epochs", "2", "--skip-sanity-checks").code == 0
    (run,), problems = gather([tmp_path / "results"])
    summary = json.loads((run.folder / "summary.json").read_text())
    assert problems == []
    assert set(summary) == set(Outcome.model_fields) - {"inverts"} | {"rescued", "density_reason"}
    assert set(summary["cost"]["search"]) == set(Spent.model_fields)
    assert (len(run.epochs), run.config_hash) == (4, summary["config_hash"])
    (series,) = tasks_of([run])[0].series
    assert isinstance(series, Series)
    (row,) = Contents(tasks_of([run])[0], tmp_path).accuracy().rows
    assert row["after_mean"] == summary["test_acc_after_finetune"]
    assert row["weights_remaining_percent_mean"] == summary["weights_remaining_percent"]
    assert prefixed(0.5) == "0.5"


def test_a_report_of_runs_with_next_to_nothing_in_them(root: Path, call) -> None:
    (make_run(root / "a", None) / "acc_and_sparsity.csv").unlink()
    (make_run(root / "b", algo="training") / "acc_and_sparsity.csv").unlink()
    make_run(
        root / "c", algo="random_subnet", prune_rate=0.01, rows=0, says_weights_remaining_percent=0.0, says_cost={}
    )
    assert call("--report", root).code == 0
    page = (root / "report" / "report.html").read_text()
    assert "1 (going on)" in page
    assert len(list(root.glob("report/figures/*"))) == 2  # what the dense network cost
