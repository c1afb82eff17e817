"""Options: what they default to, how they are given, and what is said when they are given wrongly."""

import re
import warnings
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt

import main
from args_helper import FLAGS_ONLY, FROM_FILE, OPTIONS, RETIRED, Config, parse_args
from tests import toys
from utils.options.modes import MODES
from utils.options.types import allowed, choices_of, is_bool

# The sample config of the published README, without its headings: a line between each two semicolons.
SAMPLE = (
    "algo: 'hc_iter'; iter_period: 5; arch: resnet20; dataset: CIFAR10; name: resnet20_quantized_iter_hc; "
    "optimizer: sgd; lr: 0.1 #0.01; lr_policy: cosine_lr #constant_lr #multistep_lr; fine_tune_lr: 0.01; "
    "fine_tune_lr_policy: multistep_lr; epochs: 150 ; wd: 0.0 ; momentum: 0.9; batch_size: 128; "
    "conv_type: SubnetConv; bn_type: NonAffineBatchNorm; freeze_weights: True; prune_type: BottomK; "
    "target_sparsity: 0.59; unflag_before_finetune: True; init: signed_constant; "
    "score_init: unif #skew #half #bimodal #skew # bern; scale_fan: False #True; round: naive ; noise: True; "
    "noise_ratio: 0 ; hc_quantized: True; quantize_threshold: 0.5; regularization: L2; lmbda: 0.0001 # 1e-4; "
    "workers: 4; gpu: 0; checkpoint_at_prune: False; skip_sanity_checks: False"
).replace("; ", "\n")

GONE = (
    "weight_decay iter_ep lr_adjust shift num_round hc_warmup hc_period plot_hc_convergence trainer save_plot_data "
    "log_interval loss score_init_constant lam_finetune_loss num_step_finetune num_epochs transfer_learning load_ckpt "
    "bias_lastlayer mode_connect_filename transformer_emsize transformer_nhid transformer_nlayers transformer_clip "
    "transformer_bptt transformer_dropout transformer_nhead submask_size metric pruning_strategy how_to_prune "
    "start_from_nothing flips td temp max_iter"
).split()
"""Options of the published code that do nothing here."""

BOUNDS = [
    *((name, bound) for name, field in OPTIONS.items() for bound in field.metadata
      if isinstance(bound, Ge | Gt | Le | Lt)),
    ("lmbda", Ge(0)),
]  # fmt: skip
"""Each option that is a number, with each of its bounds."""

BESIDE = {
    "shuffle": True,
    "pretrained": "a",
    "pretrained2": "b",
    "sanity_folder": "c",
    "hc_quantized": True,
    "pack": "d",
}
"""What some options need beside."""


def beside(name: str) -> dict[str, object]:
    """What an option needs or bears beside it; a mode bears no other mode."""
    modes = {*MODES, "evaluate_only"}
    return {other: value for other, value in BESIDE.items() if other != name and not {name, other} <= modes}


def written(folder: Path, text: str) -> str:
    """The path of a YAML file with this text."""
    path = folder / "given.yml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def from_yaml(folder: Path, text: str) -> Config:
    return parse_args(["--config", written(folder, text)])


def complaint(*argv: str) -> str:
    """What is said about a command line that cannot be used."""
    return toys.complaint(parse_args, list(argv))


def complaint_about(folder: Path, text: str) -> str:
    """What is said about a YAML file, its path written as FILE."""
    path = written(folder, text)
    return complaint("--config", path).replace(path, "FILE")


# ---- declarations --------------------------------------------------------------------------------------------------


def test_no_argument_at_all_gives_the_defaults():
    assert parse_args([]) == Config()


def test_help_shows_every_option_with_its_meaning_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    monkeypatch.setattr(OPTIONS["gamma"], "description", "5% (a lot) of %s")
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help"])
    assert ended.value.code == 0
    sections = re.split(r"\n {2}(?=\S)", capsys.readouterr().out)  # an option and its meaning, on a line or two
    entries = {part.split()[0].removeprefix("--"): " ".join(part.split()) for part in sections if part[:2] == "--"}
    assert set(entries) == set(OPTIONS)
    assert all(field.description.strip() and field.description in entries[name] for name, field in OPTIONS.items())
    assert entries["lr"].endswith("initial learning rate of the search [0.001; number, > 0]")
    assert "a line each, and end" in entries["list"] and "[]" not in entries["list"]
    assert entries["freeze_weights"].endswith("[true]")
    assert "-p N" in entries["print_freq"]
    assert "constant_lr|cosine_lr|multistep_lr" in entries["lr_policy"]


# ---- how options are given -----------------------------------------------------------------------------------------


def test_the_published_sample_config_parses_as_it_is(tmp_path):
    with warnings.catch_warnings(action="error"):
        config = from_yaml(tmp_path, SAMPLE)
    assert config.model_dump(include=config.model_fields_set - {"config", "subfolder"}) == yaml.safe_load(SAMPLE)
    assert config.density == pytest.approx(0.0059)
    assert list(config.prunings) == list(range(5, 150, 5))


def test_flags_beat_the_file_which_beats_the_defaults(tmp_path):
    config = parse_args(["--config", written(tmp_path, "lr: 0.2\nwd: 0.3\n"), "--lr", "0.1"])
    assert (config.lr, config.wd, config.momentum) == (0.1, 0.3, 0.9)


@pytest.mark.parametrize("name", [name for name, field in OPTIONS.items() if field.annotation is bool])
def test_a_boolean_flag_is_bare_or_has_a_value_or_is_negated(name):
    dashed = name.replace("_", "-")
    base = [f"--{other}={value}" for other, value in beside(name).items()]
    for words in ([f"--{name}"], [f"--{dashed}"], [f"--{name}", "true"], [f"--{name}=True"]):
        assert getattr(parse_args([*base, f"--no_{name}", *words]), name) is True
    for words in ([f"--{name}", "false"], [f"--{name}=False"], [f"--no_{name}"], [f"--no-{dashed}"]):
        assert getattr(parse_args([*base, f"--{name}", *words]), name) is False


@pytest.mark.parametrize(("given", "name", "value"), [
    # flags
    ("--batch-size=7", "batch_size", 7), ("--name=my-run_1", "name", "my-run_1"), ("-p 3", "print_freq", 3),
    ("--name my-run_1", "name", "my-run_1"), ("--ckpt-interval 3", "save_every", 3), ("--data-dir x", "data", "x"),
    ("--num_workers 3", "workers", 3), ("--width_mult 0.5", "width", 0.5), ("--run-idx 2", "run_idx", "2"),
    ("--save-every -1", "save_every", -1), ("--prune-rate -1e-3", "prune_rate", -0.001),
    ("--milestones 3 7", "milestones", (3, 7)), ("--ckpt_at_fixed_epochs 4", "ckpt_at_fixed_epochs", (4,)),
    ("-e --pretrained x", "evaluate", True), ("--lmbda 1.e-5", "lmbda", 1e-5), ("--noise --lr 12", "lr", 12),
    # lines of a file
    ("ckpt_interval: 3", "save_every", 3), ("num_workers: 3", "workers", 3), ("data_dir: x", "data", "x"),
    ("width_mult: 2", "width", 2.0), ("milestones: [3, 7]", "milestones", (3, 7)), ("noise: 1", "noise", True),
    ("milestones: 3, 7", "milestones", (3, 7)), ("milestones: 3", "milestones", (3,)), ("lr:", "lr", 1e-3),
    ("epochs: '12'", "epochs", 12), ("name: 0.59", "name", "0.59"), ("batch-size: 7", "batch_size", 7),
    ("regularization: False", "regularization", "none"), ("regularization: None", "regularization", "none"),
    ("lmbda: 5E-4", "lmbda", 5e-4), ("lmbda: 1.e-5", "lmbda", 1e-5), ("lmbda: .5", "lmbda", 0.5),
    ("lr_policy: None", "lr_policy", "constant_lr"), ("first_layer_type: None", "first_layer_type", "SubnetConv"),
    ("epochs: 1.0e+2", "epochs", 100), ("epochs: 1e2", "epochs", 100), ("# nothing", "epochs", 10),
    # a text stays as it is written, and numbers are decimal, whatever YAML takes them for
    ("name: 1_44", "name", "1_44"), ("name: 007", "name", "007"), ("subfolder: 2022-02-24", "subfolder", "2022-02-24"),
    ("run_idx: 010", "run_idx", "010"), ("seed: 1_0", "seed", 10), ("seed: 010", "seed", 10), ("lr: 00.5", "lr", 0.5),
    ("trial_num: 01", "trial_num", 1), ("milestones: [050, 080]", "milestones", (50, 80)),
    # Python's None is no value, where it is not a folder
    ("name: None", "name", None), ("milestones: None", "milestones", None), ("pretrained: None", "pretrained", None),
    ("--run_idx None", "run_idx", None), ("--results_dir None", "results_dir", "None"),
    # a subfolder is called after the file
    ("lr: 1", "subfolder", "given"), ("subfolder: mine", "subfolder", "mine"), ("--lr 1", "subfolder", None),
    # what options come to
    ("--override_prune_rate --prune_rate 0.3", "pruning_rate", 0.3), ("--prune_rate 0.3", "pruning_rate", 0.995),
    ("--epochs 150 --iter_period 5 --iter_start 50 --target_sparsity 1.44", "pruning_rate", 1 - 0.0144 ** (1 / 19)),
    ("--seed 5 --trial_num 3", "effective_seed", 15), ("--seed 5 --trial_num 3", "init_seed", 15),
    ("--seed 5 --trial_num 3 --fixed_init --seed_fixed_init 8", "effective_seed", 15),
    ("--seed 5 --trial_num 3 --fixed_init --seed_fixed_init 8", "init_seed", 8),
    ("--seed 0", "effective_seed", 0), ("--seed 0 --trial_num 3", "effective_seed", -2),
    ("--epochs 12", "tuning_epochs", 12), ("--epochs 12 --fine_tune_epochs 3", "tuning_epochs", 3),
    ("--dataset FfcvImageNet", "dataset", "ImageNet"), ("--device cuda --gpu 2", "torch_device", "cuda:2"),
    ("--device cpu --gpu 2", "torch_device", "cpu"),
    ("--arch resnet20Normal --algo training", "without_masks", True),
    ("--conv_type DenseConv --algo training", "without_masks", True), ("--algo training", "without_masks", False),
    # switches that name an algorithm
    ("--weight_training", "algo", "training"), ("--dense_training", "algo", "training"),
    ("--algo wt", "algo", "training"), ("--random_subnet", "algo", "random_subnet"),
    ("--random_subnet --smart_ratio 0.9", "algo", "smart_ratio"), ("--ticket x", "algo", "given"),
    # concrete search is its authors' unless said
    ("--algo cts", "optimizer", "adam"), ("--algo cts", "lr_policy", "multistep_lr"), ("--algo cts", "wd", 0.0),
    ("--algo cts --lr 0.3", "lr", 0.3),
    # rounds of magnitude pruning are those given, or those that the target needs
    ("--algo imp --target_sparsity 1.44", "imp_prunings", 20), ("--algo imp --imp_rounds 7", "imp_prunings", 6),
    ("--algo imp --target_sparsity 80", "imp_prunings", 1), ("--algo imp --target_sparsity 64", "imp_prunings", 2),
    ("--algo imp --target_sparsity 100", "imp_prunings", 0),
    ("--algo imp --target_sparsity 1.44 --prune_rate 0.5", "imp_prunings", 7),
])  # fmt: skip
def test_what_is_given_is_what_an_option_or_a_property_is(given, name, value, tmp_path):
    config = parse_args(given.split()) if given.startswith("-") else from_yaml(tmp_path, given)
    assert getattr(config, name) == value


def test_true_as_penalty_means_none_and_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"regularization \(.*:1\): true names no penalty"):
        assert from_yaml(tmp_path, "regularization: True\n").regularization == "none"


# ---- what a config is ----------------------------------------------------------------------------------------------


def test_a_config_cannot_be_changed():
    config = parse_args(["--milestones", "3", "7"])
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 1.0
    hash(config)  # fails if a value is a list, which could still be changed in place


@pytest.mark.parametrize("option", ["algo", "arch"])
def test_the_text_of_a_file_of_ones_own_enters_the_hash(option, tmp_path):
    path = tmp_path / "mine.py"
    hashes = set()
    for text in ("x = 1", "x = 2"):
        path.write_text(text)
        hashes.add(parse_args([f"--{option}", f"{path}:make"]).config_hash)
    assert len(hashes) == 2


def test_the_task_is_the_same_for_every_way_to_find_a_ticket_and_another_for_another_network():
    ticket = parse_args("--algo hc_iter --lr 0.3 --batch_size 7 --init signed_constant --epochs 77".split())
    assert ticket.task_hash == parse_args(["--algo", "training"]).task_hash
    for words in ("--width 2", "--seed 1", "--dataset CIFAR10", "--arch resnet32", "--use_full_data"):
        assert parse_args(words.split()).task_hash != ticket.task_hash


def another(name: str) -> Any:
    """A value of an option other than its default, allowed by itself."""
    field, special = OPTIONS[name], {"max_time": "2h", "checkpoint_every": "10m", "alpha": 2, "alpha_prime": 2}
    if is_bool(field):
        return not field.default
    numbers = {"whole": (2, 1), "number": (0.25,), "auto": (0.25,)}.get(re.split("[ ,]", allowed(field))[0], ("x",))
    others = choices_of(field) or [special.get(name, numbers[0]), *numbers]
    return next(other for other in others if other != field.default)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_hash_changes_with_what_affects_the_result_and_only_with_that(name):
    plain, changed = Config(), Config(**{name: another(name)})
    assert getattr(changed, name) != getattr(plain, name)
    assert (changed.config_hash != plain.config_hash) is OPTIONS[name].json_schema_extra["affects"]


@pytest.mark.parametrize(("dataset", "hashes"), [("ImageFolder", 2), ("CIFAR10", 1)])
def test_the_folder_of_the_data_enters_the_hash_where_it_is_the_data(dataset, hashes):
    assert len({Config(dataset=dataset, data=folder).config_hash for folder in ("a", "b")}) == hashes


def test_a_config_as_yaml_reads_back_as_itself(tmp_path):
    before = parse_args([
        "--config", written(tmp_path, SAMPLE), "--milestones", "3", "7", "--lmbda", "1e-7", "--name", "0.59",
        "--subfolder", "schöner/Ort", "--run_idx", "no", "--ckpt_at_fixed_epochs", "0", "--no-freeze-weights",
    ])  # fmt: skip
    assert "schöner/Ort" in before.to_yaml()
    after = from_yaml(tmp_path, before.to_yaml())
    assert (after, after.config_hash) == (before, before.config_hash)


def test_a_config_as_yaml_holds_every_option_but_those_of_the_call():
    text = Config(config="x.yml", resume="there", print_config=True, max_time="2h").to_yaml()
    named = {line.partition(":")[0] for line in text.splitlines()}
    unset = {name for name, field in OPTIONS.items() if field.default is None}
    assert named == set(OPTIONS) - unset - {"config", "resume", "resume_anyway", "print_config", "sweep"}


# ---- what is said of a wrong value ---------------------------------------------------------------------------------

PENALTIES = "none, L2, L1, L1_L2, var_red_1, var_red_2, bin_entropy"


@pytest.mark.parametrize(("text", "said"), [
    ("epochs: ten", "'ten' is not a whole number"), ("epochs: 2.5", "2.5 is not a whole number"),
    ("epochs: [2]", "[2] is not a whole number"), ("epochs: true", "true is not a number"),
    ("lr: fast", "'fast' is not a number"), ("lr: false", "false is not a number"),
    ("epochs: 1:30", "'1:30' is not a whole number"), ("lr: 1:30.5", "'1:30.5' is not a number"),
    ("lr: [0.1]", "[0.1] is not a number"), ("lr: .nan", "nan is not a finite number"),
    ("noise: maybe", "'maybe' is neither true nor false"),
    ("noise: [true]", "[True] is neither true nor false"), ("data: [a]", "['a'] is not a text"),
    ("milestones: [3, x, y]", "'x' is not a whole number"), ("lr: 2001-99-99", "month must be in 1..12"),
    ("wd: !!python/object/apply:os.getcwd []",
     "neither a plain value nor a list of them (python/object/apply:os.getcwd)"),
    ("max_time: 1:30", "'1:30' is not a length of time such as 2h, 90m, 45s or 1h30m"),
    ("name: ../elsewhere", "'../elsewhere' is not a plain name or relative path"),
    ("name: /elsewhere", "'/elsewhere' is not a plain name or relative path"),
    ("name: ' '", "' ' is not a plain name or relative path"),
    (f"name: {'a/' * 40}{'../' * 50}{'b/' * 40}",
     f"'{'a/' * 30}...{'b/' * 30}' is not a plain name or relative path"),
    ("target_sparsity: 0", "0 is too small: it has to be above 0"),
    ("batch_size: 0", "0 is too small: it has to be at least 1"),
    ("target-sparsity: 100.5", "100.5 is too large: it may be at most 100"),
    ("momentum: 1", "1 is too large: it has to be below 1"),
    ("lr_policy: [cosine_lr]", "['cosine_lr'] is not one of constant_lr, cosine_lr, multistep_lr"),
    ("lr_policy: cosine", "'cosine' is not one of constant_lr, cosine_lr, multistep_lr; did you mean "
     "'lr_policy: cosine_lr'?"),
    ("regularization: l2", f"'l2' is not one of {PENALTIES}; did you mean 'regularization: L2'?"),
    ("device: gpu", "'gpu' is not one of auto, cpu, cuda, mps; did you mean 'device: cuda'?"),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_its_line_and_what_is_allowed(text, said, tmp_path):
    name = text.partition(":")[0].replace("-", "_")
    message = complaint_about(tmp_path, f"# a comment\n{text}\n")
    assert message == f"a problem with the options:\n  {name} (FILE:2): {said}"


@pytest.mark.parametrize(("name", "given", "nearest"), [
    ("dataset", "CIFAR-10", "CIFAR10"),
    ("arch", "resnet_20", "resnet20"),
    ("algo", "hciter", "hc_iter"),
    ("algo", "Gem-Miner", "hc_iter"),
    ("algo", "mine:find_ticket", "mine.py:find_ticket"),
    ("arch", "mynet.py", "mynet.py:<function>"),
    ("init", "he", "kaiming_normal"),
])  # fmt: skip
def test_an_unknown_name_of_many_is_answered_by_the_nearest(name, given, nearest, tmp_path):
    in_file, flag = complaint_about(tmp_path, f"{name}: {given}"), complaint(f"--{name}", given)
    for where, message, meant in ((f"{name} (FILE:1)", in_file, f"{name}: "), (f"--{name}", flag, f"--{name} ")):
        assert message.startswith(f"a problem with the options:\n  {where}: '{given}' is not one of ")
        assert message.endswith(f"; did you mean '{meant}{nearest}'?") and (
            f" {nearest}, " in message or ".py" in nearest
        )


@pytest.mark.parametrize(("name", "bound"), BOUNDS, ids=str)
def test_a_number_out_of_its_bounds_is_refused_and_one_at_them_is_taken(name, bound):
    [limit], is_low = astuple(bound), isinstance(bound, Ge | Gt)
    step = (1 if allowed(OPTIONS[name]).startswith("whole") else 0.001) * (1 if is_low else -1)
    inside, outside = (limit, limit - step) if isinstance(bound, Ge | Le) else (limit + step, limit)
    assert getattr(Config(**{name: inside}), name) == inside
    assert f"--{name}: {outside} is too {'small' if is_low else 'large'}: it " in complaint(f"--{name}", str(outside))


# ---- what the published code's files and command lines hold ------------------------------------------------------

SPELLINGS = {
    "algo": "wt dense mine.py:find_ticket", "dataset": "FfcvImageNet", "lr_policy": "None", "first_layer_type": "None",
    "regularization": "False True", "how_to_connect": "random score", "milestones": "[50,80] [80]", "save_every": "-1",
    "lmbda": "0 1.e-5 0.00003 auto", "compare_tickets": "[a.safetensors,b.safetensors]", "imp_rounds": "-1 20",
}  # fmt: skip
"""Option -> other values that published files have there."""


@pytest.mark.filterwarnings("ignore:.*true names no penalty")
@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in {*FLAGS_ONLY, "weights"}])
def test_an_option_has_the_same_values_in_a_file_and_as_a_flag(option, tmp_path):
    names = [name for name in choices_of(OPTIONS[option]) if "<" not in name and name != FROM_FILE]
    values = "true false True False 1 0".split() if is_bool(OPTIONS[option]) else names
    others = "".join(f"{name}: {value}\n" for name, value in beside(option).items())
    for value in [*values, *SPELLINGS.get(option, "").split()] or [str(another(option))]:
        words = re.sub(r"[\[\],]", " ", value).split()
        flag = parse_args(["--config", written(tmp_path, others), f"--{option.replace('_', '-')}", *words])
        assert flag == parse_args(["--config", written(tmp_path, f"{others}{option}: {value}\n")])


# The kinds of files that the published code came with, in words of our own: a line between each two semicolons.
OLD_FILES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "edge-popup": (
        "algo: 'ep'; subfolder: EP_5; override_prune_rate: True; prune_rate: 0.05   # kept; arch: MobileNetV2; "
        "dataset: CIFAR10; optimizer: sgd; lr: 0.1; lr_policy: cosine_lr; epochs: 200; weight_decay: 0.0005; "
        "batch_size: 256; conv_type: SubnetConv; bn_type: NonAffineBatchNorm; init: signed_constant; mode: fan_in; "
        "nonlinearity: relu; scale_fan: True; freeze_weights: True; workers: 4; gpu: 2; skip_sanity_checks: True",
        {"algo": "ep", "prune_rate": 0.05, "override_prune_rate": True, "wd": 5e-4, "scale_fan": True, "epochs": 200},
        {"weight_decay"},
    ),
    "dense training": (
        "trial_num: 1; algo: 'hc_iter'; weight_training: True; arch: WideResNet28; dataset: CIFAR10; lr: 0.1; "
        "lr_policy: multistep_lr #cosine_lr; epochs: 150 ; wd: 0.0; prune_rate: -1; target_sparsity: 100; "
        "init: kaiming_normal; scale_fan: True; lmbda: 0 # 1e-4; skip_fine_tune: True; "
        "ckpt_at_fixed_epochs: [1, 3, 5, 10]",
        {"algo": "training", "ckpt_at_fixed_epochs": (1, 3, 5, 10), "wd": 0, "lmbda": 0, "scale_fan": False},
        {"scale_fan"},
    ),
    "Gem-Miner on ImageNet": (
        "# lam_finetune_loss: 1; num_step_finetune: 5; algo: 'hc_iter'; iter_period: 5; arch: ResNet50; "
        "dataset: FfcvImageNet; data: /workspace/ffcv-imagenet/data/; optimizer: adam; lr: 0.05 #0.01; epochs: 88; "
        "mixed_precision: False; prune_type: BottomK; target_sparsity: 5; unflag_before_finetune: False; "
        "regularization: L2; lmbda: 0.0000001; multiprocessing_distributed: False; hc_quantized: True; "
        "round: naive ; noise: True; noise_ratio: 0 ",
        {"dataset": "ImageNet", "arch": "ResNet50", "lmbda": 1e-7, "optimizer": "adam", "noise": True, "epochs": 88},
        {"num_step_finetune"},
    ),
}


@pytest.mark.parametrize("kind", OLD_FILES)
def test_a_file_of_the_published_codes_kinds_parses_unchanged(kind, tmp_path):
    text, expected, retired = OLD_FILES[kind]
    with warnings.catch_warnings(record=True, action="always") as caught:
        config = from_yaml(tmp_path, text.replace("; ", "\n"))
    assert {name: getattr(config, name) for name in expected} == expected
    assert {str(one.message).partition(" ")[0] for one in caught} == retired


def test_a_path_in_the_home_folder_is_one_in_a_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = from_yaml(tmp_path, "results_dir: ~/results\ndata: ~other\nteacher: ~/a/b\nname: a~/b")
    assert [config.results_dir, config.teacher] == [str(tmp_path / "results"), str(tmp_path / "a/b")]
    assert (config.data, config.name) == ("~other", "a~/b")


def test_an_algorithm_beside_a_ticket_is_told_to_be_unused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.warns(UserWarning, match="--algo: not used, as ticket .*x is trained"):
        complaint("--algo", "snip", "--ticket", str(tmp_path / "x"), "--epochs", "-1")


@pytest.mark.parametrize(("words", "says"), [
    ("--algo rigl --fine_tune_lr 0.1 --epochs 3", "--fine_tune_lr: not used by rigl, which trains"),
    ("--algo imp --epochs 3 --iter_period 2 --teacher x", "--epochs, --teacher: not used by imp, which trains"),
    ("--algo training --fine_tune_epochs 3 --lr 0.1", "--fine_tune_epochs: not used by training, which trains"),
    ("--algo synflow --lr 0.1 --epochs 3", "--lr: not used by synflow, which only"),
    ("--lr 0.1 --epochs 6 --fine_tune_lr 0.1", None),
])  # fmt: skip
def test_a_flag_of_training_that_an_algorithm_does_not_read_is_told(words, says, tmp_path):
    with warnings.catch_warnings(record=True, action="always") as caught:
        parse_args(words.split())
    assert [says] == [str(one.message)[: len(says)] for one in caught] if says else not caught
    with warnings.catch_warnings(action="error"):  # files share options, and hold those of others
        from_yaml(tmp_path, "\n".join(f"{name}: 0.1" for name in ("fine_tune_lr", "lr")) + "\nalgo: rigl")


@pytest.mark.parametrize("init", ["signed_constant", "unsigned_constant", "kaiming_normal"])
def test_a_prune_rate_that_is_not_used_leaves_the_fan_as_it_is_with_one_warning(init, tmp_path):
    beside, path = f"init: {init}\nprune_rate: -1\n", tmp_path / "given.yml"
    with pytest.warns(UserWarning) as caught:
        config = from_yaml(tmp_path, f"{beside}scale_fan: true\n")
    assert [str(one.message) for one in caught] == [
        f"scale_fan ({path}:3), prune_rate ({path}:2): with a prune_rate of −1, not used, scale_fan leaves the fan as "
        "it is"
    ]
    for text in (beside, config.to_yaml()):  # said once: what is written down is what was meant
        assert config.config_hash == from_yaml(tmp_path, text).config_hash


@pytest.mark.parametrize("name", GONE)
def test_a_retired_option_warns_where_it_stands_and_changes_nothing(name, tmp_path):
    said = f"this option does nothing any more; {RETIRED[name]}"
    with pytest.warns(UserWarning) as caught:
        config = from_yaml(tmp_path, f"lr: 0.1\n{name}: 3\n")
        parse_args([f"--{name.replace('_', '-')}", "3"])
    assert [str(one.message) for one in caught] == [f"{name} ({tmp_path / 'given.yml'}:2): {said}", f"--{name}: {said}"]
    assert config.config_hash == parse_args(["--lr", "0.1"]).config_hash
    if named := re.match(r"use (\w+)(?: (?:and|or) (\w+))?", RETIRED[name]):
        assert {word for word in named.groups() if word} <= set(OPTIONS)


# ---- names that are not options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "nearest"), [("epoch", "epochs"), ("num_worker", "num_workers"), ("qqq", None)])
def test_an_unknown_name_is_refused_with_the_nearest(given, nearest, tmp_path):
    line, flag = (f"; did you mean '{nearest}: 1'?", f"; did you mean '--{nearest} 1'?") if nearest else ("", "")
    assert complaint_about(tmp_path, f"\n{given}: 1\n").endswith(f"\n  {given} (FILE:2): no such option{line}")
    for words in ([f"--{given}", "1"], [f"--{given}=1"]):
        assert complaint(*words).endswith(f"\n  --{given}: no such option{flag}")


def test_what_other_tools_call_an_option_is_answered_by_its_name_here(tmp_path):
    assert complaint("--learning-rate", "0.1").endswith("no such option; did you mean '--lr 0.1'?")
    assert complaint_about(tmp_path, "model: resnet20\n").endswith("no such option; did you mean 'arch: resnet20'?")
    # With the same value these would mean something else.
    assert complaint("--density", "0.05").endswith("; there is target_sparsity, the percentage of weights that remain")
    assert complaint_about(tmp_path, "sanity_checks: false\n").endswith("; there is skip_sanity_checks, its opposite")
    assert complaint("--cpu").endswith("--cpu: no such option; there is device, as in device: cpu")
    assert complaint("--gpus", "2").endswith(
        "; there is gpu, the number of one GPU; several share a run that torchrun starts"
    )
    assert complaint("--data-path", "x").endswith("no such option; did you mean '--data x'?")


def test_an_empty_word_is_a_missing_value_and_not_no_file():
    for name in ("ticket", "pretrained", "teacher", "results_dir", "lr", "noise"):
        assert complaint(f"--{name}", "").endswith(f"\n  --{name}: a value is missing")


@pytest.mark.parametrize(("words", "said"), [
    ("-x", "-x: no such option"),
    ("some.yml",
     "some.yml: not expected; an option is written --name value; did you mean --config some.yml?"),
    ("word", "word: not expected; an option is written --name value"),
    *((words, f"{words.split()[0]}: a value is missing")
      for words in ("--lr", "--lr --noise", "--config", "--resume", "--dataset")),
    ("--no-noise=true", "argument --no_noise: ignored explicit argument 'true'"),
    # With the default of 10 epochs the warm-up would be too long; but that was not given.
    ("--warmup_length 20 --epochs 2x0", "--epochs: '2x0' is not a whole number"),
])  # fmt: skip
def test_a_flag_that_cannot_be_used_is_the_only_problem(words, said):
    assert complaint(*words.split()).removeprefix("a problem with the options:\n  ") == said


# ---- combinations --------------------------------------------------------------------------------------------------

CONTRADICTIONS = [
    ("--scale_fan --prune_rate -0.5",
     "scale_fan needs a prune_rate in [0, 1), or −1 to leave the fan as it is, not -0.5", "--scale_fan --prune_rate 0"),
    *((f"--scale_fan --prune_rate 1 --init {init}", "scale_fan needs a prune_rate in [0, 1), or −1",
       "--scale_fan --prune_rate 1 --init standard") for init in ("signed_constant", "unsigned_constant")),
    *((f"--image_size 16 --dataset {name}", "image_size is for images in folders (TinyImageNet, ImageNet, Caltech101, "
       f"ImageFolder): those of {name} have one size", f"--image_size 16 --dataset {other}")
      for name, other in (("Digits", "ImageFolder"), ("MNIST", "Caltech101"), ("CIFAR10", "TinyImageNet"),
                          ("CIFAR100", "ImageNet"))),
    ("--warmup_length 9 --epochs 9", "warmup_length 9 has to be below epochs, 9", "--warmup_length 8 --epochs 9"),
    ("--warmup_length 5 --iter_period 5 --algo imp", "warmup_length 5 has to be below iter_period, 5",
     "--warmup_length 5 --iter_period 6 --epochs 5 --algo imp"),
    *((f"--start_epoch 1 --algo {algo}", f"{algo} begins at epoch 0: leave start_epoch out", "--start_epoch 1")
      for algo in ("imp", "cts")),
    *((f"--round {how} --algo {algo}", f"round {how} takes scores as probabilities, which those of {algo} are not",
       f"--round {how}") for how, algo in (("prob", "ep"), ("naive_prob", "global_ep"), ("prob", "global_ep_iter"))),
    ("--regularization bin_entropy --algo ep", "regularization bin_entropy is for scores in [0, 1]",
     "--regularization L2 --algo ep"),
    *((f"--invert_sanity_check --algo {algo}", f"invert_sanity_check is for hc_iter: {algo} would find the same ticket",
       "--invert_sanity_check") for algo in ("hc", "ep", "snip", "imp")),
    ("--lmbda auto --algo ep", "lmbda auto is for hc_iter: give ep a number", "--lmbda auto"),
    ("--algo gmp --prune_type FixThresholding", "gmp prunes by LocalBottomK (each layer)", "--algo gmp"),
    ("--algo smart_ratio --last_layer_dense", "algo smart_ratio sets the density of the last layer",
     "--algo smart_ratio --first_layer_dense"),
    ("--epochs 1 --mode_connect --pretrained x", "mode_connect needs two networks",
     "--epochs 1 --mode_connect --pretrained x --pretrained2 y"),
    ("--start_epoch 9 --epochs 9", "start_epoch 9 has to be below epochs, 9", "--start_epoch 8 --epochs 9"),
    ("--nesterov --momentum 0", "nesterov needs a momentum above 0", "--nesterov --momentum 0.1"),
    ("--nesterov --momentum 0 --optimizer adam --fine_tune_optimizer sgd", "nesterov needs a momentum above 0",
     "--nesterov --momentum 0 --optimizer adam --fine_tune_optimizer adam"),
    ("--conv_type DenseConv --algo hc", "algo hc learns masks, which conv_type DenseConv has not", "--algo hc"),
    *((f"--arch resnet20Normal --algo {algo}", f"algo {algo} learns masks, which arch resnet20Normal has not",
       "--arch resnet20Normal --algo snip") for algo in ("hc", "hc_iter", "ep", "global_ep", "global_ep_iter")),
    ("--no_cuda --device cuda", "no_cuda is to use the CPU, and device cuda is not the CPU", "--no_cuda --device cpu"),
    ("--weights DEFAULT", "weights are torchvision's, for networks such as torchvision/resnet18",
     "--weights DEFAULT --arch torchvision/resnet18"),
    ("--weights DEFAULT --arch torchvision/vgg11 --pretrained x", "weights and pretrained both say where to start from",
     "--evaluate --weights DEFAULT --arch torchvision/vgg11 --pretrained x"),
    *((f"--arch torchvision/vgg11 --{option}",
       f"torchvision/vgg11 comes as it is: {option.split()[0]} is for the tool's own networks", f"--{option}")
      for option in ("width 2", "bias true", "bn_type AffineBatchNorm", "hidden_size 9")),
    ("--score_init half --hc_quantized", "score_init half would begin with every weight switched off: no score of 0.5 "
     "is above quantize_threshold 0.5", "--score_init half --hc_quantized --quantize_threshold 0.4"),
    ("--bottom_k_on_forward --hc_quantized false", "bottom_k_on_forward rounds as it goes: set hc_quantized",
     "--bottom_k_on_forward --hc_quantized"),
    ("--bottom_k_on_forward --bias --hc_quantized",
     "bottom_k_on_forward ranks weights only: it cannot be had with bias", "--bias --hc_quantized"),
    ("--bottom_k_on_forward --algo hc --hc_quantized",
     "bottom_k_on_forward takes its fraction from the prunings of hc_iter", "--algo hc --hc_quantized"),
    *(("--epochs 5 --iter_period 5", "the first pruning follows epoch 5 (counted from 0), and epochs is 5", near)
      for near in ("--epochs 6 --iter_period 5", "--epochs 5 --iter_period 5 --algo hc")),
    ("--epochs 11 --iter_start 10", "hc_iter would never prune: the first pruning follows epoch 15",
     "--epochs 11 --iter_start 9"),
    *((f"--override_prune_rate --prune_rate {rate}", "hc_iter would never prune, or prune everything: each pruning "
       f"removes a fraction of {rate}, which has to lie between 0 and 1", near)
      for rate, near in ((-1, "--prune_rate -1"), (1, "--prune_rate 1"),
                         (0, "--override_prune_rate --prune_rate 0 --target_sparsity 100"))),
    *((f"--rewind_score --rewind_to_epoch {epoch}", f"rewind_to_epoch {epoch} lies after the first pruning", near)
      for epoch, near in ((6, "--rewind_score --rewind_to_epoch 5"), (6, "--rewind_to_epoch 6"),
                          (10, "--rewind_score --rewind_to_epoch 10 --start_epoch 10 --epochs 20"))),
    *((f"--rewind_score --rewind_to_epoch {before} --start_epoch {start}", f"{before} lies before start_epoch {start}",
       f"--rewind_score --rewind_to_epoch {near} --start_epoch {start}")
      for before, start, near in ((1, 2, 2), (0, 1, -1))),
    ("--algo ep --prune_rate 0", "algo ep needs a prune_rate between 0 and 1, not 0", "--algo ep --prune_rate -1"),
    ("--algo imp --prune_rate 1", "algo imp needs a prune_rate between 0 and 1, not 1", "--algo imp --prune_rate -1"),
    ("--algo imp --imp_rounds 0", "imp_rounds 0 is neither −1 nor at least 1", "--algo imp --imp_rounds 1"),
    ("--algo imp --imp_resume_round 1", "imp_resume_round needs --imp_resume_folder",
     "--algo imp --imp_resume_round 1 --imp_resume_folder x"),
    ("--algo imp --imp_resume_round 3 --imp_rounds 3 --imp_resume_folder x",
     "imp_resume_round 3 lies beyond the last round, 2",
     "--algo imp --imp_resume_round 2 --imp_rounds 3 --imp_resume_folder x"),
    ("--algo imp --imp_resume_iter 1", "a place in a round was given but no round", "--algo imp"),
    ("--random_subnet --prune_rate 0", "random_subnet keeps each weight by chance prune_rate, which cannot be 0",
     "--random_subnet --prune_rate 1"),
    ("--chg_mask", "chg_mask and chg_weight say what shuffle or reinit is of", "--chg_mask --reinit"),
    ("--algo given", "algo given is a ticket from a file", "--ticket x"),
    ("--ticket x --pretrained y", "a ticket brings the weights that it begins with", "--ticket x"),
    ("--algo cts --target_sparsity 100", "algo cts needs a target_sparsity below 100", "--algo cts"),
    ("--algo cts --noise --noise_ratio 1", "noise is for masks that are rounded scores", "--algo hc --noise"),
    ("--algo cts --round prob", "round prob takes scores as probabilities", "--algo cts"),
    ("--algo cts --rewind_epoch 3 --epochs 3", "rewind_epoch 3 has to be below fine_tune_epochs, 3",
     "--algo cts --rewind_epoch 2 --epochs 3"),
    ("--pack a --check_data b", "each of these says what to do: give one of them", "--pack a"),
    ("--report a --dry_run", "each of these says what to do: give one of them", "--sweep a --dry_run"),
    ("--evaluate --pretrained a --export", "each of these says what to do: give one of them", "--export"),
    ("--only_sanity", "only_sanity needs a sanity_folder", "--only_sanity --ticket x"),
    ("--only_sanity --sanity_folder x --ticket y", "runs or a ticket: give one of them",
     "--sanity_folder x --ticket y"),
    ("--results_filename config.yml", "results_filename config.yml may be that of another file of the run",
     "--results_filename a/config.csv"),
    ("--compare_tickets a", "compare_tickets needs two or more", "--compare_tickets a b"),
    ("--evaluate", "evaluate needs a network", "--evaluate --pretrained x"),
    ("--compare_rounding", "compare_rounding needs scores", "--compare_rounding --pretrained x"),
]  # fmt: skip
"""Words that cannot be meant together, what is said of them, and words near them that can."""


@pytest.mark.parametrize(("words", "said", "possible"), CONTRADICTIONS)
def test_an_impossible_combination_is_refused_and_its_possible_neighbour_taken(words, said, possible):
    heading, problem = complaint(*words.split()).splitlines()
    where, _, text = problem.partition(": ")
    assert heading == "a problem with the options:" and said in text
    assert set(where.strip().split(", ")) <= {word for word in words.split() if word.startswith("--")}
    assert said.split()[0] not in OPTIONS or f"--{said.split()[0]}" in where
    parse_args(possible.split())


# ---- the message as a whole ----------------------------------------------------------------------------------------


def test_all_problems_are_said_at_once_each_with_its_place(tmp_path):
    path = written(tmp_path, "lr: fast\nepochs: 0\nlr_policy: cosine\nnesterov: true\nfoo_bar: 1\nlist: model\nlr: 2\n")
    message = complaint("--config", path, *"--momentum 0 --wd -1 --qqq 3 stray --noise=maybe".split())
    heading, *problems = message.replace(path, "FILE").splitlines()
    assert heading == "11 problems with the options:"
    assert {line.strip().partition(": ")[0] for line in problems} == {
        "lr (FILE:1)", "epochs (FILE:2)", "lr_policy (FILE:3)", "nesterov (FILE:4), --momentum", "foo_bar (FILE:5)",
        "list (FILE:6)", "lr (FILE:7)", "--wd", "--qqq", "stray", "--noise",
    }  # fmt: skip


NO_OPTIONS = "FILE is not a list of options: it should have lines such as 'lr: 0.1'"


@pytest.mark.parametrize(("text", "said"), [
    ("workers: 1\nlr: 1\nnum-workers: 2\n", r".*\n  num_workers \(FILE:3\): given before, at workers \(FILE:1\)"),
    ("lr:\nlr: 0.2\n", r".*\n  lr \(FILE:2\): given before, at lr \(FILE:1\)"),
    ("lr: 0.1\nname: a: b\n", r"FILE is not YAML: .*, line 2, column 8 \(put a text with ': ' in quotes\)"),
    ("lr: 0.1\n  wd: 0\n", r"FILE is not YAML: .*, line 2, column 5 \(write an option at the start of its line\)"),
    ("lr 0.1\nwd: 0\n", r"FILE is not YAML: .*, line 2, column 3 \(is a colon missing above\?\)"),
    ("lr: 0.1\nmilestones: [1\nwd: 2\n", r"FILE is not YAML: .*, line 3, column \d+"),
    ("lr: 'open\n\n", r"FILE is not YAML: .*, line 1, column 5 \(the quote is not closed\)"),
    ("wd: 0\nlr 1\nepochs: 2\n", r"FILE is not YAML: .*, line 2, column 1 \(is a colon missing\?\)"),
    ("lr:\t1\n", r"FILE is not YAML: .*, line 1, column 4 \(write a space instead of the tab\)"),
    ("\tlr: 1\n", r"FILE is not YAML: .*, line 1, column \d+ \(line 1: indent with spaces, not with a tab\)"),
    ("lr: 1\ndataset:Digits\nwd: 2\n", r"FILE is not YAML: .* \(line 2: is a space missing after 'dataset:'\?\)"),
    ("dataset:Digits\n", rf"{NO_OPTIONS} \(line 1: is a space missing after 'dataset:'\?\)"),
    ("runs:\n  a: {lr: 1}\n", "--config FILE: it is a sweep file: --sweep FILE"),
    ("options: {lr: 1}\nvary:\n", "--config FILE: it is a sweep file: --sweep FILE"),
    ("lr: 1\nsearch:\n  wd: 0\n", r"a problem with .*\n  search \(FILE:2\): neither a plain value nor .* \(map\)"),
    ("lr: 1\n---\nlr: 2\n", r"FILE is not YAML: expected a single document .*, line 2, column \d+"),
    ("- lr\n- wd\n", NO_OPTIONS),
    ("just words\n", NO_OPTIONS),
])  # fmt: skip
def test_a_file_that_is_no_list_of_options_is_refused_with_the_line(text, said, tmp_path):
    assert re.fullmatch(said, complaint_about(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    missing, latin = tmp_path / "none.yml", tmp_path / "latin.yml"
    said = f"cannot read the config file {missing}: No such file or directory"
    assert complaint("--config", str(missing)) == f"{said}; --list configs shows them"
    (tmp_path / "nine.yml").touch()
    assert complaint("--config", str(missing)) == f"{said}; did you mean 'nine.yml'?"
    assert complaint("--config", str(tmp_path)) == f"cannot read the config file {tmp_path}: Is a directory"
    latin.write_bytes("lr: 0.1\nname: schön\n".encode("latin-1"))
    assert complaint("--config", str(latin)).endswith("latin.yml: line 2 is not UTF-8 text; save it as UTF-8")


# ---- going on with a run -------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that was begun with lr 0.1, wd 0.2, trial 2, 3 workers."""
    folder = tmp_path / "trial_2"
    folder.mkdir()
    config = parse_args("--lr 0.1 --wd 0.2 --trial_num 2 --workers 3 --name first --milestones 3 7".split())
    (folder / "config.yml").write_text(config.to_yaml())
    return str(folder)


def test_a_mode_among_the_flags_takes_the_place_of_that_in_the_file(tmp_path):
    path = written(tmp_path, "export: true\nlr: 0.3\n")
    config = parse_args(["--config", path, "--evaluate", "--pretrained", "x"])
    assert (config.export, config.evaluate, config.lr) == (False, True, 0.3)
    assert parse_args(["--config", path, "--no-evaluate"]).export


def test_resuming_takes_the_stored_options_and_those_given_that_do_not_affect_the_result(begun):
    config = parse_args(["--resume", begun])
    assert (config.lr, config.wd, config.trial_num, config.workers, config.name) == (0.1, 0.2, 2, 3, "first")
    assert (config.milestones, config.resume, config.config, config.subfolder) == ((3, 7), begun, None, None)
    given = {"workers": 1, "device": "cpu", "num_trial": 4, "data": "there", "lr": 0.1, "trial_num": 2}
    words = [f"--{name}={value}" for name, value in given.items()]
    assert parse_args(["--resume", begun, *words]) == config.model_copy(update=given)


@pytest.mark.parametrize(("words", "differing"), [
    ("--wd 0.3 --lr 0.3 --workers 5", "lr 0.1 → 0.3, wd 0.2 → 0.3"),
    ("--milestones 3 8", "milestones [3, 7] → [3, 8]"),
    ("--trial_num 3", "trial_num 2 → 3"),
    ("--seed 1", "seed 42 → 1"), ("--config FILE", "lr 0.1 → 0.3"),
])  # fmt: skip
def test_resuming_with_another_experiment_is_refused_with_the_difference(begun, tmp_path, words, differing):
    words = words.replace("FILE", str(written(tmp_path, "lr: 0.3\n")))
    hint = "" if differing.startswith(("trial_num", "seed")) else "; --resume_anyway goes on with the new ones"
    said = f"--resume {begun}: a run goes on as it began, but these options differ: {differing}{hint}"
    assert complaint("--resume", begun, *words.split()) == said


def test_a_run_goes_on_with_other_options_when_asked_to_and_is_no_longer_the_same_experiment(begun):
    with pytest.warns(UserWarning, match="going on with lr 0.1 → 0.3"):
        config = parse_args(["--resume", begun, "--lr", "0.3", "--resume_anyway", "--num_trial", "3"])
    assert (config.lr, config.resumed_with, config.num_trial) == (0.3, "lr 0.1 → 0.3", 1)
    assert config.config_hash != parse_args(["--config", f"{begun}/config.yml", "--lr", "0.3"]).config_hash
    (Path(begun) / "config.yml").write_text(config.to_yaml())
    assert parse_args(["--resume", begun]).resumed_with == "lr 0.1 → 0.3"
    with pytest.warns(UserWarning):
        again = parse_args(["--resume", begun, "--wd", "0", "--resume_anyway"])
    assert again.resumed_with == "lr 0.1 → 0.3; wd 0.2 → 0.0"


def test_some_options_cannot_change_in_a_run_that_has_begun(begun):
    message = complaint("--resume", begun, "--lr", "0.3", "--arch", "resnet32", "--seed", "1", "--resume_anyway")
    assert message.endswith("lr 0.1 → 0.3; a run that has begun cannot change seed, arch")
    (Path(begun) / "summary.json").touch()
    message = complaint("--resume", begun, "--lr", "0.3", "--resume_anyway")
    assert "the run is finished, and cannot go on with lr 0.1 → 0.3; --ticket" in message


def test_a_folder_of_trials_is_told_to_be_none_with_the_trials_in_it(begun, tmp_path):
    assert complaint("--resume", str(tmp_path)).endswith(
        "the folder of a run; its trials are trial_2: give one of them"
    )


def test_a_run_on_a_folder_of_images_goes_on_with_them_elsewhere_as_the_same_experiment(tmp_path):
    before = parse_args("--dataset ImageFolder --data here --lr 0.1".split())
    for data in ("there", "there", "elsewhere", "here"):
        (tmp_path / "config.yml").write_text(before.to_yaml())
        with warnings.catch_warnings(record=True, action="always") as caught:
            after = parse_args(["--resume", str(tmp_path), "--data", data])
        said = f"--resume {tmp_path}: the images in {data} have to be those of here"
        assert [str(one.message) for one in caught] == ([] if data == before.data else [said])
        assert (after.data, after.config_hash, after.task_hash) == (data, before.config_hash, before.task_hash)
        before = after
    assert "these options differ: lr 0.1 → 0.3;" in complaint("--resume", str(tmp_path), "--data=here", "--lr=0.3")


def test_resuming_says_what_is_wrong_with_the_flags_and_with_the_stored_file(begun):
    stored = Path(begun) / "config.yml"
    stored.write_text("lr: 0.1\nfoo_bar: 1\n")
    heading, *problems = complaint("--resume", begun, "--qqq", "3").splitlines()
    assert heading == "2 problems with the options:"
    assert problems == ["  --qqq: no such option", f"  foo_bar ({stored}:2): no such option"]


def test_every_mode_but_a_sweep_excludes_the_others():
    assert {*main.MODES} - {"", "sweep"} == {*MODES}
