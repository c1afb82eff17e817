"""The format of a sweep file: the runs, the options that vary over them, and the options to search for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from args_helper import DECLARED, Config
from utils.errors import UserError, did_you_mean
from utils.options.messages import complaint
from utils.options.parser import Given, validated
from utils.options.types import allowed
from utils.options.yaml_file import read_document


def _canonical(name: str) -> str:
    name = name.replace("-", "_")
    return DECLARED.canonical.get(name, name)


TEXTS = frozenset(name for name, field in DECLARED.fields.items() if allowed(field) == "text")
"""The options whose values are texts, such as `run_idx: 1_44`, which YAML reads as 144."""

Option = Annotated[str, AfterValidator(_canonical)]


def _once(options: Any) -> Any:
    if isinstance(options, dict):
        names = [_canonical(name) for name in options if isinstance(name, str)]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{', '.join(sorted(doubled))} is given twice, in two spellings")
    return options


Options = Annotated[dict[Option, Any], BeforeValidator(_once)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Part):
    """Numbers from `low` to `high`, both included."""

    low: Any
    high: Any
    log: bool = False


Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Field(min_length=2), Tag("values")],
    Discriminator(lambda given: "values" if isinstance(given, list) else "range"),
]


class Study(_Part):
    """The settings of a search.

    Attributes:
        trials: number of runs in each search.
        metric: what to maximise; never measured on test.
        pruner: `median` ends a run that is below the median of the finished ones at the same epochs.
        startup: random runs before the search learns from results; also finished runs before any is ended early.
        first_stop: fraction of its epochs before which no run is ended.
        seed: of the search's random values and of its runs; must differ from the seeds of the trials.
        tolerance: fraction by which the weights remaining may exceed the target; null: any density is allowed.
        confirm: run what was found like any other run of the file, with the seeds of the options.
    """

    trials: Annotated[int, Field(ge=1)] = 12
    metric: Literal["val_acc_before_finetune", "val_acc_after_finetune"] = "val_acc_before_finetune"
    pruner: Literal["median", "none"] = "median"
    startup: Annotated[int, Field(ge=1)] = 4
    first_stop: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 7
    tolerance: Annotated[float, Field(ge=0)] | None = 0.05
    confirm: bool = True


class Sweep(_Part):
    """A sweep file.

    Attributes:
        options: of all runs.
        vary: option -> values; each run is made with every combination of them.
        search: option -> where to search for its best value.
        study: settings of all searches.
        runs: name -> the run's own options, which override the others and are neither varied nor searched.
    """

    options: Options = {}
    vary: dict[Option, Annotated[list[Any], Field(min_length=1)]] = {}
    search: dict[Option, Space] = {}
    study: Study = Study()
    runs: Annotated[dict[str, Options | None], Field(min_length=1)]


def runs_of(path: Path, flags: Mapping[str, Any] = {}) -> Iterator[tuple[str, Options]]:
    """Yield each run's name, `run/option_value`, and its options in the file; a flag replaces all values of its option.

    Args:
        path: of the file.
        flags: option -> value; only those in `vary` matter here. The caller puts the others on top.

    Raises:
        UserError: the file cannot be read, or has the wrong format.
    """
    sweep = read_sweep(path)
    vary = {name: [_short(name, flags[name], every)] if name in flags else every for name, every in sweep.vary.items()}
    for name, own in sweep.runs.items():
        own = own or {}
        open_options = {option: values for option, values in vary.items() if option not in own}
        for values in product(*open_options.values()):
            chosen = dict(zip(open_options, values))
            full_name = named(name, chosen)
            yield full_name, {"subfolder": path.stem, "name": full_name, **sweep.options, **chosen, **own}


def _short(option: str, flag: Any, values: list[Any]) -> Any:
    """Return a flag's value as the file writes it, so that it names the same run; one that it lacks without `.0`."""

    def is_same(value: Any) -> bool:
        config, wrong = validated(Config, {option: Given(value, "")}, [])
        return option not in wrong and getattr(config, option) == flag

    same = filter(is_same, values)
    return next(same, str(flag).removesuffix(".0") if isinstance(flag, float) else flag)


def named(name: str, chosen: Mapping[str, Any]) -> str:
    """Return the name of a run in which some options have these values; the report finds the density in it."""
    return "/".join([name, *(f"{option}_{value}" for option, value in chosen.items())])


def read_sweep(path: Path) -> Sweep:
    """Raises: UserError: the file cannot be read, or has the wrong format."""
    content = read_document(path, "sweep", TEXTS)
    keys = content.keys() if isinstance(content, dict) else set()
    if {_canonical(str(name)) for name in keys} & DECLARED.fields.keys() and not keys & Sweep.model_fields.keys():
        raise UserError(f"--sweep {path}: it is the config of one run: --config {path}")
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise UserError("\n  ".join([f"the sweep {path}:", *map(_problem, error.errors())])) from error


_OF_NAMES = {
    "options": "options to values",
    "vary": "options to lists of values",
    "search": "options to where to search",
    "runs": "the runs' names to their options",
}


def _problem(error: ErrorDetails) -> str:
    place = [str(part) for part in error["loc"] if part not in ("range", "values")]
    kind, inner = error["type"], place[:-1] if error["type"] == "extra_forbidden" else place
    model = {"study": Study, "search": Range}.get("".join(inner[:1]), Sweep)
    keys = ", ".join(model.model_fields)
    if kind == "extra_forbidden":
        told = f"no such key; allowed: {keys}{did_you_mean(place[-1], model.model_fields)}"
    elif kind == "model_type":
        told = f"has to be a mapping of {keys}" + (", or a list of values" if model is Range else "")
    elif kind == "dict_type":
        told = f"has to be a mapping of {_OF_NAMES[place[0] if len(place) == 1 else 'options']}"
    else:
        told = "is missing" if kind == "missing" else complaint(error)
    return f"{'.'.join(place) or 'the file'}: {told}"
