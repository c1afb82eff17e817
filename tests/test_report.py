"""The report: what it reads in run folders, how it groups runs, what stands in its tables, and where it is written."""

import json
import re
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from args_helper import config_of
from tests.conftest import read_rows, summary_of
from tests.run_folders import make_run, make_trials
from trainers.checks.verdict import judge
from trainers.reporting.gather import DAMAGED, FINISHED, GOING_ON, gather
from trainers.reporting.page import File, Part, Report, Section
from trainers.reporting.plots import PANEL, _figure, legend
from trainers.reporting.plotting import _curve, draw_checks
from trainers.reporting.published import PUBLISHED, beside_published, published_for
from trainers.reporting.report import write_report
from trainers.reporting.series import family_of, tasks_of
from trainers.reporting.tables import formatted
from trainers.results.references import dense_config
from trainers.results.summary import Outcome, Spent
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "results"


def series_of(root):
    """The series of runs of one task."""
    runs, problems = gather([root])
    assert not problems
    (task,) = tasks_of(runs)
    return task.series


def table(root, part, *columns):
    """The rows of a table of the report; with columns, these cells of each row."""
    (path,) = root.glob(f"report/tables/*_{part}.csv")
    return [[row[name] for name in columns] if columns else row for row in read_rows(path)]


def texts(root, part):
    """The texts of a figure of the report: they are drawn as shapes, each under its words."""
    (figure,) = root.glob(f"report/figures/*_{part}.svg")
    return re.findall(r"<!-- *(.*) -->", figure.read_text())


# ---- figures over trials -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")  # of a layout that cannot be made
@pytest.mark.parametrize("columns", [1, 2])
def test_a_long_legend_takes_no_room_from_the_panels(columns):
    def draw(axes, names):
        for name in names:
            axes.plot([1], label=name)

    names = [f"gem/search_549a4d/{number:03d}" for number in range(30)]
    figure = _figure(draw, [names, []], columns, PANEL[1], {})
    legend(figure)
    figure.draw_without_rendering()
    assert all(axes.get_position().height * figure.get_figheight() > PANEL[1] / 2 for axes in figure.axes)


@pytest.mark.parametrize(("value", "form", "text"), [
    (None, ".2f", "–"), (-1.005, "+.1f", "−1.0"), (2.5, "+.2f", "+2.50"), (58846399488, "si", "58.8 G"),
    (999.7, "si", "1 k"), (0, "si", "0"), (0.5, "si", "0.5"), (1e19, "si", "10 E"),
])  # fmt: skip
def test_figures_are_written_alike_everywhere(value, form, text):
    assert formatted(value, form) == text


def test_masks_that_were_not_found_at_initialisation_are_named(root, call):
    made = {"snip": {}, "gmp": {}, "given": {"says_as_drawn": False}, "synflow": {"says_as_drawn": False}}
    for algo, says in made.items():
        ticket = {"ticket": "x"} if algo == "given" else {}
        make_run(root / algo / "trial_1", algo=algo, target_sparsity=5, name=algo, **ticket, **says)
    assert call("--report", root).code == 0
    [note] = re.findall(r"Not at initialisation, .*: (.*)\.", (root / "report" / "report.md").read_text())
    assert sorted(note.split(", ")) == ["gmp", "synflow"]


def test_tables_have_figures_over_trials_checks_judged_as_everywhere_layers_and_costs(root, call):
    tickets, controls, dense = [90, 91, 92], [85, 86.5, 86.5], {"test_acc_after_finetune": 97.0, "gap": 7.0}
    name = "snip/target_sparsity_5"
    make_trials(root, name, tickets, algo="snip", target_sparsity=5, check_mask_shuffle=controls)
    make_run(root / name / "trial_4", 95.0, algo="snip", target_sparsity=5, trial_num=4, name=name, says_dense=dense)
    make_run(root / name / "trial_5", 96.0, algo="snip", target_sparsity=5, trial_num=5, name=name,
             says_gem_weights_remaining=3, says_dense=dense | {"gap": 1.0, "trained_alike": False})  # fmt: skip
    make_run(root / "inverted", 40.0, invert_sanity_check=True, says_inverts={"test_acc_after_finetune": 90.0},
             says_dense=dense | {"gap": 57.0, "trained_alike": False})  # fmt: skip
    assert call("--report", root).code == 0
    after = table(root, "accuracy", "series", "gem_percent_mean", "after_mean", "after_sd", "below_dense_mean", "n")
    assert after == [["hc_iter", "0.5", "40.0", "", "57.0", "1"], ["snip", "4.6", "92.8", str(6.7**0.5), "7.0", "5"]]
    page = (root / "report" / "report.md").read_text()
    assert "| 92.80 ± 2.59 | 7.00 (n = 1) | 5 |" in page and "| 40.00 | 57.00 \\* | 1 |" in page
    columns = ("check", "ticket_mean", "check_accuracy_mean", "margin", "low", "high", "verdict", "n")
    verdict = judge(tickets, controls)  # over the trials that ran it
    assert table(root, "checks", *columns) == [
        ["score_inversion", "90.0", "40.0", "50.0", "", "", "undecided", "1"],
        ["mask_shuffle", "91.0", "86.0", "5.0", str(verdict.low), str(verdict.high), "passes", "3"],
    ]
    layers = table(root, "layers", "layer", "density_percent_mean", "n")
    assert layers[2:] == [["conv1", "80.0", "5"], ["fc", str(200 / 90), "5"]]  # in percent of their own weights
    costs = ("epochs", "search_epochs", "flops_dense", "flops_masked", "seconds", "peak_memory_bytes")
    spent = table(root, "costs", *(f"{name}_mean" for name in costs))
    assert spent == [["4.0", "2.0", "6007.0", "1207.0", "3.0", "5000.0"]] * 2  # of search and fine-tuning together


def test_the_same_trial_from_another_file_of_the_same_name_is_another_experiment(root, call):
    for name, digest, accuracy in (("one", "a", 90.0), ("two", "b", 80.0), ("two_copied", "b", 80.0)):
        folder = make_run(root / name, accuracy, algo="given", ticket="t.safetensors", name=name, target_sparsity=5)
        (folder / "environment.json").write_text(json.dumps({"files": {"ticket": digest}}))
    assert "two_copied: left out: it is the same experiment and trial as" in call("--report", root).err
    rows = table(root, "accuracy", "series", "after_mean", "n")
    assert [row[1:] for row in rows] == [["90.0", "1"], ["80.0", "1"]] and rows[0][0] != rows[1][0]


def test_a_ticket_is_compared_with_a_dense_run_that_was_finished_after_it(root, call):
    options = {"arch": "FC", "fine_tune_epochs": 3, "target_sparsity": 5}
    make_run(root / "snip", 90.0, algo="snip", name="snip", **options)
    task, like = config_of(options).task_hash, dense_config(config_of({"algo": "snip", **options}))
    trained = {"arch": "FC", "algo": "training", "says_algo": "training", "says_task_hash": task}
    alike = {name: getattr(like, name) for name in ("epochs", "optimizer", "lr", "lr_policy", "wd")}
    for name, accuracy, others in (("otherwise", 99.0, {"epochs": 9}), ("dense", 95.0, alike)):
        make_run(root / name, accuracy, name=name, **trained, **others)
    assert call("--report", root).code == 0
    assert "| 90.00 | 5.00 |" in (root / "report" / "report.md").read_text()


# ---- series --------------------------------------------------------------------------------------------------------


def test_densities_of_one_setting_are_one_series_and_another_setting_is_another(root):
    for lmbda in (0.1, 0.2):
        for target in (1, 5):
            make_run(root / f"{lmbda}_{target}", algo="hc", target_sparsity=target, lmbda=lmbda)
    densities = {one.name: [each.density for each in one.experiments] for one in series_of(root)}
    assert densities == {"hc, lmbda 0.1": [5, 1], "hc, lmbda 0.2": [5, 1]}


def test_runs_of_a_sweep_are_called_after_it_though_more_than_density_differs(root):
    for target, lmbda in ((5, 0.2), (1.5, 0.1)):
        name = f"gem/target_sparsity_{target}"
        make_run(root / name, algo="hc", subfolder="digits", name=name, target_sparsity=target, lmbda=lmbda)
    make_run(root / "dense", algo="training", subfolder="digits", name="dense", target_sparsity=100)
    dense, gem = series_of(root)
    assert (dense.name, gem.name) == ("dense", "gem")
    assert (dense.is_dense, gem.also_differs) == (True, {"lmbda": ["0.2", "0.1"]})


def test_runs_of_a_sweep_at_one_density_have_the_names_that_it_gives_them(root):
    for name, options in {"fixed": {"lmbda": 1e-3}, "auto": {"lmbda": "auto"}, "dense": {"algo": "training"}}.items():
        make_run(root / name, subfolder="ladder", name=name, **options)
    assert [one.name for one in series_of(root)] == ["auto", "dense", "fixed"]


def test_two_settings_at_one_density_under_one_name_do_not_fall_together(root):
    for seed in (1, 2):
        make_run(root / str(seed) / "a", algo="snip", name="x/target_sparsity_5", target_sparsity=5, seed=seed)
    one, other = series_of(root)
    assert one.name != other.name and len(one.experiments) == len(other.experiments) == 1


def test_a_density_that_nothing_aimed_at_is_no_target(root, call):
    for options in ({"algo": "random_subnet", "prune_rate": 0.5}, {"algo": "snip", "target_sparsity": 5}):
        make_run(root / options["algo"], **options)
        make_run(root / options["algo"] / "going_on", None, trial_num=2, **options)
    assert call("--report", root).code == 0
    assert table(root, "accuracy", "series", "target_percent") == [["random_subnet", ""], ["snip", "5.0"]]
    assert {"trial 2, going on", "5%, trial 2, going on"} <= set(texts(root, "curves"))


@pytest.mark.parametrize(("place", "target", "family"), [
    ("resnet20_sparsity_1_44_unflagT/", 1.44, "resnet20_unflagT"), ("mobilenetv2_ep_20/", 20, "mobilenetv2_ep"),
    ("s/imp/target_sparsity_0.5/lmbda_5", 0.5, "s/imp/lmbda_5"), ("resnet20/", 20, None), ("/run_15", 5, None),
    ("s/best_x_target_sparsity_5.0", 5, "s/best_x"), ("/5_run", 5, "run"), ("/_5_/x", 5, "_/x"), ("/", 5, None),
    ("digits/smart_ratio/target_sparsity_5", 5, "digits/smart_ratio"), ("smart_ratio_5", 5, "smart_ratio"),
    ("reinit/target_sparsity_5", 5, "reinit"), ("gm/iter_period_5", 5, None),
    ("gm/iter_period_5/5", 5, "gm/iter_period_5"),
    ("digits_5/gem/iter_period_5/target_sparsity_5", 5, "digits_5/gem/iter_period_5"),
])  # fmt: skip
def test_the_family_is_the_place_without_the_density(place, target, family):
    subfolder, _, name = place.partition("/")
    options = {"subfolder": subfolder or None, "name": name or None, "target_sparsity": target}
    assert family_of(config_of(options, "a test")) == family


def test_every_task_has_a_section_of_its_own(root):
    make_run(root / "a", algo="snip")
    make_run(root / "b", algo="snip", width=0.5)
    make_run(root / "c", algo="snip", dataset="MNIST", seed=7)
    assert [task.title for task in tasks_of(gather([root])[0])] == [
        "resnet20 on Digits", "resnet20 on Digits (width 0.5)", "resnet20 on MNIST",
    ]  # fmt: skip


def test_rungs_of_a_ladder_that_differ_in_their_batchnorm_are_compared(root):
    make_run(root / "a", bn_type="AffineBatchNorm")
    make_run(root / "b")
    assert [one.name for one in series_of(root)] == [
        f"hc_iter, bn_type {kind}BatchNorm" for kind in ("Affine", "NonAffine")
    ]


# ---- damage --------------------------------------------------------------------------------------------------------


BEGUN = '{"config_hash": "x", "trial": 1, "classes": 10, "weights_total": 5, "weights_remaining_percent": '


@pytest.mark.parametrize(("content", "said"), [
    ("{", "cannot read"), ("[" * 100_000, "cannot read"), ("1" * 5000, "cannot read"), ("[]", "valid dictionary"),
    ('{"config_hash": "x"}', "classes: Field required"),
    (BEGUN + "NaN}", "finite number"), (BEGUN + "500}", "less than or equal to 100"),
])  # fmt: skip
def test_a_damaged_summary_is_told_of_and_stops_nothing(root, content, said):
    make_run(root / "good", algo="snip")
    broken = make_run(root / "broken", algo="snip", target_sparsity=7)
    (broken / "summary.json").write_text(content)
    runs, (problem,) = gather([root])
    assert {run.folder.name: run.state for run in runs} == {"good": "finished", "broken": DAMAGED}
    assert problem.folder == broken and said in problem.text


@pytest.mark.parametrize(("cut", "used", "said"), [
    ("57,,6", 6, "cut off"), ("x,1,2\n", 6, "missing"), ("search,6,0.1,,57,,\n", 6, "missing"), ("", 6, None),
    ("finetune,6,0.1,,10,,9,nan,0,14,0.2\n", 7, None),
])  # fmt: skip
def test_a_table_of_epochs_is_read_up_to_where_it_is_damaged(root, cut, used, said):
    table = make_run(root / "a", None, rows=6) / "acc_and_sparsity.csv"
    table.write_text(table.read_text() + cut)
    (run,), problems = gather([root])
    assert (run.state, len(run.epochs), run.epochs[5].test_acc) == (GOING_ON, used, 55)
    assert [said in problem.text for problem in problems] == ([] if said is None else [True])


def test_a_config_that_cannot_be_read_leaves_its_run_out(root):
    make_run(root / "good")
    (make_run(root / "bad", algo="snip") / "config.yml").write_text("nonsense: 1\n")
    (make_run(root / "none", algo="grasp") / "config.yml").unlink()
    runs, problems = gather([root])
    assert [one.folder.name for one in (*runs, *problems)] == ["good", "bad", "none"]


def test_a_config_that_is_not_its_summarys_is_told_of(root):
    config = make_run(root / "a") / "config.yml"
    config.write_text(config.read_text().replace("\nlr: 0.001\n", "\nlr: 0.5\n"))
    (run,), (problem,) = gather([root])
    assert "its config.yml, or a .py file it names, is no longer what ran: " in problem.text
    assert run.config_hash == run.outcome.config_hash


def test_a_copy_is_no_second_trial_and_the_finished_one_counts(root):
    make_run(root / "a", None)
    make_run(root / "b", 80.0)
    (run,), (problem,) = gather([root, root / "b"])  # and the same folder given twice is no copy
    assert (run.folder.name, problem.folder.name) == ("b", "a")


# ---- the paper -----------------------------------------------------------------------------------------------------

IMP = {"target_sparsity": 1.44, "algo": "imp", "hc_quantized": False, "unflag_before_finetune": False}
GEM = {
    "algo": "hc_iter", "dataset": "CIFAR10", "hc_quantized": True, "unflag_before_finetune": True, "epochs": 150,
    "iter_period": 5,
}  # fmt: skip


def test_runs_are_set_beside_all_figures_of_the_paper(root, call):
    make_trials(root, "gem", [82, 83, 84], **GEM, target_sparsity=3.72, lr=0.1, check_mask_shuffle=[70, 70, 70])
    assert call("--report", root).code == 0
    rows = table(root, "paper")
    ticket, shuffled = (row for row in rows if row["n"] != "0")
    assert len(rows) == len(PUBLISHED) and ticket == rows[0]
    assert (ticket["paper"], ticket["ours_mean"], float(ticket["difference"])) == ("83.4", "83.0", pytest.approx(-0.4))
    assert (shuffled["paper"], float(shuffled["difference"])) == ("78.73", pytest.approx(70 - 78.73))
    assert "lmbda 3e-05 → 0.001" in ticket["differs_in"]
    assert not re.search(r"\blr |seed|target", ticket["differs_in"])
    markdown = (root / "report" / "report.md").read_text()
    assert "| 83.40 | 3.72 | 83.00 ± 1.00 | −0.40 | 3 |" in markdown and "| 77.89 | – | – | – | 0 |" in markdown


@pytest.mark.parametrize(("options", "figures"), [
    ({"target_sparsity": 1.41}, [77.89]),
    ({"target_sparsity": 1.44, "epochs": 2800}, [79.50]),  # nearer to the long search
    ({"target_sparsity": 1.3}, []),  # too far from any density of the paper's
    ({"target_sparsity": 1.44, "hc_quantized": False}, []),
    ({"target_sparsity": 1.44, "invert_sanity_check": True}, []),
    ({"target_sparsity": 0.59}, [66.15, 45.30]),
    ({"target_sparsity": 1.44, "algo": "imp"}, []),  # quantised scores are not IMP's
    ({**IMP, "iter_period": 160}, [74.52]),
    ({**IMP, "iter_period": 5}, []),  # rounds of 5 epochs: that is short IMP
    ({**IMP, "iter_period": 160, "imp_no_rewind": True}, [80.21]),
    ({"target_sparsity": 1.44, "dataset": "CIFAR100"}, []),
    ({"target_sparsity": 1.44, "dataset": "ImageFolder", "data": "."}, []),
    ({"target_sparsity": 1.44, "arch": "resnet32"}, []),
])  # fmt: skip
def test_only_an_attempt_at_the_same_thing_is_compared(root, options, figures):
    make_run(root / "a", 80.0, **{**GEM, **options})
    (task,) = tasks_of(gather([root])[0])
    rows = beside_published(task.series[0].experiments, published_for(task.config))
    assert [row["paper"] for row in rows if row["n"]] == figures


def test_a_run_without_a_check_does_not_hide_another_that_has_it(root):
    options = {"target_sparsity": 3.72, "epochs": 150, **GEM}
    make_run(root / "a", 80.0, **options)
    make_run(root / "b", 80.0, **options, lmbda=3e-5, says_checks={"mask_shuffle": {"test_acc_after_finetune": 78.0}})
    experiments = [one for series in tasks_of(gather([root])[0])[0].series for one in series.experiments]
    found = [row for row in beside_published(experiments, PUBLISHED) if row["paper"] == 78.73]
    assert [(row["n"], row["ours_mean"]) for row in found] == [(1, 78.0)]


def test_every_figure_of_the_paper_names_a_setting_that_is_there():
    for one in PUBLISHED:
        assert one.config.dataset == "CIFAR10"
        assert one.config.target_sparsity == pytest.approx(one.density, rel=0.05)


# ---- the report as a whole -----------------------------------------------------------------------------------------


def test_a_report_of_runs_finished_going_on_and_damaged(root, call):
    make_trials(root, "dense", [96, 97, 98], algo="training", target_sparsity=100)
    make_trials(root, "snip/target_sparsity_5", [90, 91, 92], algo="snip", target_sparsity=5,
                check_weight_reinit=[80, 82, 81])  # fmt: skip
    make_run(root / "running", None, algo="grasp", rows=5)
    (make_run(root / "broken", algo="synflow") / "summary.json").write_text("{")
    outcome, home = call("--report", root), root / "report"
    assert outcome.code == 0 and "broken" in outcome.err
    assert f"{home / 'report.html'}" in outcome.out
    page, told = (home / "report.html").read_text(), (home / "report.md").read_text()
    for text in (page, told):
        assert "91.00 ± 1.00" in text and "broken" in text and re.search(r"1 \\?\(going on", text)
    assert not re.search(r'(src|href)="(https?:)?//', page)
    links = set(re.findall(r'href="(\.\.[^"]*)"', page))
    assert len(links) == 2 * 8 and all((home / link).exists() for link in links)  # every run's folder, and its options
    rows = table(root, "accuracy", "series", "runs")
    assert {series for series, _ in rows} == {"dense", "snip", "grasp", "synflow"}
    assert all((home / place).is_dir() for _, places in rows for place in places.split("; ") if place)
    kinds = sorted(path.name.rpartition("_")[2] for path in home.glob("figures/*"))
    assert kinds == sorted(f"{part}.{end}" for part in ("accuracy", "checks", "layers", "curves", "costs")
                           for end in ("png", "svg"))  # fmt: skip


def test_what_a_search_steers_has_a_panel_and_what_stays_has_none(root, call):
    steered = {"both": ("2e-05,0.5", "3e-05,0.3"), "one": ("2e-05,0.5", "3e-05,0.5"), "none": ("0.0001,0.5",) * 2}
    for algo, (name, values) in zip(("hc_iter", "hc", "ep"), steered.items()):
        epochs = make_run(root / name, rows=4, algo=algo) / "acc_and_sparsity.csv"
        first, *rows = epochs.read_text().splitlines()
        searched = [f"{row},{value}" for row, value in zip(rows, values)]
        epochs.write_text("\n".join([first, *searched, *rows[2:], ""]))
    assert call("--report", root).code == 0
    drawn = texts(root, "curves")
    assert [drawn.count(text) for text in ("test accuracy (%)", "λ", "threshold of the rounding")] == [3, 2, 1]
    found = table(root, "epochs", "lmbda", "threshold")
    runs = [[",".join(row) for row in found[start : start + 4]] for start in (0, 4, 8)]
    assert sorted(runs) == sorted([*values, ",", ","] for values in steered.values())


def test_the_mean_of_trials_is_over_the_same_epochs_though_a_search_ended_early():
    def run(*course):
        return SimpleNamespace(state=FINISHED, epochs=[
            SimpleNamespace(phase=phase, epoch=epoch, test_acc=value) for phase, epoch, value in course
        ])  # fmt: skip

    short = run(("search", 0, 20), ("finetune", 0, 90), ("finetune", 1, 94))
    whole = run(("search", 0, 10), ("search", 1, 40), ("finetune", 0, 80), ("finetune", 1, 90))
    axes = Figure().subplots()
    _curve(axes, SimpleNamespace(runs=[short, whole], density=5.0, target=5.0), "test_acc", {"color": "k"})
    mean, divider = axes.lines
    assert mean.get_ydata().tolist() == [15, 40, 85, 92] and divider.get_xdata().tolist() == [2.5]


def test_the_plot_of_checks_names_the_trials_that_ran_them(monkeypatch):
    axes = Figure().subplots()
    monkeypatch.setattr("trainers.reporting.plotting.render", lambda draw, items, **_: draw(axes, *items))
    sds = ("ticket_sd", "check_accuracy_sd")
    row = {"series": "a", "weights_remaining_percent": 5.0, "config_hash": "h", **dict.fromkeys(sds, 1.0)}
    runs = {"weight_reinit": 3, "weight_shuffle": 3, "mask_shuffle": 2}
    draw_checks(None, [{**row, "check": check, "n": n, "ticket_mean": 90.0 + n, "check_accuracy_mean": 85.0}
                       for check, n in runs.items()])  # fmt: skip
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a\n5%, n = 3", "a\n5%, n = 2"]


def test_names_of_any_kind_are_text_and_nothing_else(root, call):
    names = ["<script>alert(1)<script>", "_hidden", "$x^$", "a|b [c](javascript:d)", '"><img src=x onerror=e()>']
    for number, name in enumerate(names):
        make_run(root / str(number), algo="snip", name=f"{name}/target_sparsity_5", target_sparsity=5, seed=number)
    assert call("--report", root).code == 0
    page = (root / "report" / "report.html").read_text()
    assert page.count("<script>") == 1  # its own
    assert "<img src=x" not in page
    markdown = (root / "report" / "report.md").read_text()
    assert "<script>" not in markdown and "&#60;script&#62;alert" in markdown
    assert {"_hidden", "$x^$", "a|b [c](javascript:d)"} <= set(texts(root, "accuracy"))


def test_a_report_is_written_over_by_the_next_and_nothing_else_is(tmp_path):
    def report(*names):
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
    # A list of files that a stranger wrote removes nothing elsewhere.
    other = tmp_path / "other.csv"
    other.write_text("x")
    listed = ["../other.csv", str(other), "tables/../../other.csv", "notes.txt", "report.html", "report.md", 3]
    (home / "report.json").write_text(json.dumps({"files": [*listed, "report.json"]}))
    write_report(home, report())
    assert other.exists() and (home / "notes.txt").exists()


def test_without_a_run_there_is_no_report(root, call):
    def refused():
        outcome = call("--report", root)
        assert (outcome.code, outcome.out) == (2, "")
        return outcome.err

    assert "there is no folder" in refused()
    root.mkdir()
    assert "there is no run" in refused()
    (make_run(root / "a") / "config.yml").write_text("nonsense: 1\n")
    assert "none of the runs can be read" in refused()
    assert not (root / "report").exists()


def test_a_real_run_is_read_whole(ran):
    folder = ran("--epochs", "2", "--skip-sanity-checks", name="a")
    (run,), problems = gather([folder.parent])
    summary = summary_of(folder)
    assert problems == []
    assert set(summary) == set(Outcome.model_fields) - {"inverts"} | {"rescued", "density_reason"}
    assert set(summary["cost"]["search"]) == set(Spent.model_fields)
    assert (len(run.epochs), run.config_hash) == (4, summary["config_hash"])
    for name in ("test_acc_after_finetune", "weights_remaining_percent"):
        assert getattr(run.outcome, name) == summary[name]


def test_a_report_of_runs_with_next_to_nothing_in_them(root, call):
    (make_run(root / "a", None) / "acc_and_sparsity.csv").unlink()
    (make_run(root / "b", algo="training") / "acc_and_sparsity.csv").unlink()
    nothing = {"rows": 0, "says_weights_remaining_percent": 0.0, "says_cost": {}}
    make_run(root / "c", algo="random_subnet", prune_rate=0.01, **nothing)
    assert call("--report", root).code == 0
    assert "1 (going on)" in (root / "report" / "report.html").read_text()
    assert len(list(root.glob("report/figures/*"))) == 2  # what the dense network cost
