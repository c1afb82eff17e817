"""The types of options: each checks the values a user may give, and describes them for `--help`.

A type is `Annotated[...]` with a validator that sees the value as YAML or a flag gives it: `--lr 0.1` arrives as a
string, `lr: 0.1` as a number, and both have to mean the same. A validator raises ValueError; pydantic collects these,
and `parser.validated` words them. `allowed` derives the text of `--help` from the same annotations.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from utils.errors import abbreviate, nearest
from utils.run.stopping import seconds_of


@dataclass(frozen=True)
class Choices:
    """The names an option allows, attached to its type for `--help`."""

    names: tuple[str, ...]


def one_of(
    *names: str, aliases: Mapping[Any, str] = {}, also: Mapping[str, str] = {}, meant: Mapping[str, str] = {}
) -> Any:
    """Make the type of an option that allows only these names.

    Args:
        names: the allowed names.
        aliases: other spelling -> allowed name.
        also: further allowed values, as description -> regular expression that matches the whole value.
        meant: what else a name is called, in lower case, without - and _ -> the name, to suggest it.

    Returns:
        A type whose values are strings: the allowed name, with aliases replaced.
    """
    described = ", ".join((*names, *also))

    def check(given: Any) -> str:
        if not isinstance(given, str | bool | int | float):
            raise ValueError(f"{abbreviate(given)} is not one of {described}")
        name = aliases.get(given, given)
        if name in names or any(re.fullmatch(pattern, abbreviate(name)) for pattern in also.values()):
            return name
        text = abbreviate(given)
        near = meant.get(re.sub("[-_ ]", "", text).lower())
        if also and (own := re.fullmatch(r"([\w./-]+?)(\.py|:\w+)", text)):  # half the name of a user's function
            near = f"{text}:<function>" if own[2] == ".py" else f"{own[1]}.py{own[2]}"
        about = {"told": f"'{text}' is not one of {described}", "nearest": near or nearest(text, names)}
        raise PydanticCustomError("not_one_of", "{told}", about)

    return Annotated[str, BeforeValidator(check), Choices((*names, *also))]


def _no_bool(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError(f"{str(given).lower()} is not a number")
    return given


def _auto_or_number(given: Any) -> Any:
    """Accept `auto` or a number of at least 0."""
    if given == "auto":
        return given
    try:
        number = float(_no_bool(given))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"'{abbreviate(given)}' is neither auto nor a number") from None
    if number < 0:
        raise ValueError(f"{abbreviate(given)} is too small: it has to be at least 0")
    return number


LARGEST = 2**63
"""Integers from here on are refused: PyTorch's int64 cannot hold them."""


def _whole(given: Any) -> Any:
    """Accept a whole number in scientific notation (`1e2`), which YAML 1.1 reads as a string."""
    try:
        number = float(_no_bool(given))
    except (TypeError, ValueError):
        return _no_bool(given)
    except OverflowError:
        number = math.inf
    if abs(number) >= LARGEST:
        raise ValueError(f"{abbreviate(given)} is too large")
    return int(number) if number.is_integer() else given


def _listed(given: Any) -> Any:
    parts = given if isinstance(given, list | tuple) else [given]
    words = (part.replace(",", " ").split() if isinstance(part, str) else [_no_bool(part)] for part in parts)
    return [word for some in words for word in some]


def _one_or_more(given: Any) -> Any:
    """Make a list of one folder; a string is not split, because a folder's name may contain spaces."""
    return [given] if isinstance(given, str) else given


def _inside(given: Any) -> Any:
    text = given if isinstance(given, str) else abbreviate(given)
    if PurePath(text).is_absolute() or ".." in PurePath(text).parts or not text.strip():
        raise ValueError(f"'{abbreviate(given)}' is not a plain name or relative path")
    return given


def _time(given: Any) -> Any:
    if seconds_of(abbreviate(given)) is None:
        raise ValueError(f"'{abbreviate(given)}' is not a length of time such as 2h, 90m, 45s or 1h30m")
    return str(given)


def _period(given: Any) -> Any:
    text = abbreviate(_no_bool(given))
    if seconds_of(text) is None and not (text.isdecimal() and int(text) > 0):
        raise ValueError(
            f"'{abbreviate(given)}' is neither a number of epochs, such as 1, nor a length of time, such as 10m"
        )
    return text


Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number below 2^63 in size; `1e3` and `100.0` are whole, true and false are no numbers."""


Float = Annotated[float, BeforeValidator(_no_bool)]
"""A finite number."""


Auto = Annotated[float | Literal["auto"], BeforeValidator(_auto_or_number)]


Ints = Annotated[tuple[Int, ...], BeforeValidator(_listed)]
"""Whole numbers: a YAML list, or a string or flag with spaces or commas between them."""


Paths = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
"""Files: one, or a list."""


Folders = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_one_or_more)]
"""Folders: one, or a list that is not empty."""


Inside = Annotated[str, BeforeValidator(_inside)]
"""A name or relative path without `..`: what it names stays inside the folder that it is put into."""


Time = Annotated[str, BeforeValidator(_time)]
"""A length of time above zero, such as `2h` or `1h30m`; kept as text (see `utils.run.stopping.seconds_of`)."""


Period = Annotated[str, BeforeValidator(_period)]
"""A number of epochs from 1, such as `5`, or a length of time, such as `10m`; kept as text."""


def option(
    default: Any,
    text: str,
    *,
    affects: bool = True,
    aliases: tuple[str, ...] = (),
    changeable: bool = False,
    **bounds: Any,
) -> Any:
    """Declare an option.

    Args:
        default: the value when the user gives none.
        text: the description for `--help`.
        affects: whether the option affects the result; only such options enter `config_hash`.
        aliases: other names; a single letter is a short flag.
        changeable: whether a run can be resumed with another value of the option (`resume_anyway`).
        bounds: `ge`, `gt`, `le`, `lt`, as in pydantic.

    Returns:
        What pydantic takes as the value of a class attribute: `lr: Float = option(0.1, "learning rate", gt=0)`.
    """
    about = {"affects": affects, "aliases": list(aliases), "changeable": changeable}
    return Field(default, description=text, json_schema_extra=about, **bounds)


_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")


class Options(BaseModel):
    """The base of the classes whose fields are the options: frozen, and nothing but declared options is accepted."""

    # protected_namespaces=(): otherwise pydantic reserves field names such as model_...
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, given: Any) -> Any:
        """Refuse bytes, huge integers, NUL and invalid UTF-8, which file systems, YAML or terminals cannot take.

        A path in the home folder, `~/...`, is written in full, as a shell does with a flag's.
        """
        if isinstance(given, bytes) or (isinstance(given, int) and abs(given) >= LARGEST):
            raise ValueError(f"{abbreviate(given)} is neither a text nor a number that can be used")
        if isinstance(given, str) and _NO_TEXT.search(given):
            raise ValueError(f"'{abbreviate(given)}' has signs that are no text, such as NUL, or is not UTF-8")
        return os.path.expanduser(given) if isinstance(given, str) and given.startswith("~/") else given


def parts_of(annotation: Any) -> Iterator[Any]:
    """Yield a type and, at any depth, the types that it is made of: of `tuple[Int, ...] | None` also int."""
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


def is_bool(field: FieldInfo) -> bool:
    return field.annotation is bool


def is_list(field: FieldInfo) -> bool:
    return any(get_origin(part) is tuple for part in parts_of(field.annotation))


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the names an option allows, also for an optional one (`one_of(...) | None`)."""
    inner = (getattr(part, "__metadata__", ()) for part in parts_of(field.annotation))
    return next((extra.names for extra in chain(field.metadata, *inner) if isinstance(extra, Choices)), ())


_SIGNS = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}


def allowed(field: FieldInfo) -> str:
    """Describe the values an option allows: its names, or its type and bounds."""
    if is_bool(field):
        return "true, false"
    if names := choices_of(field):
        return ", ".join(names)
    kinds = set(parts_of(field.annotation))
    kind = "whole" if int in kinds else "number" if float in kinds else "text"
    if is_list(field):
        kind = "whole numbers" if kind == "whole" else "texts"
    if "auto" in kinds:
        return "auto, or a number ≥ 0"
    bounds = [(_SIGNS[type(one)], one) for one in field.metadata if type(one) in _SIGNS]
    return ", ".join([kind, *(f"{sign} {getattr(one, at):g}" for (sign, at), one in bounds)])
