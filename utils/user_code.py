"""Loads a user's function by name, `path/to/file.py:function`, and reports what goes wrong in it.

The project's own are named `module:function`, in the tables `MODES`, `MODELS` and `ALGORITHMS`, because importing them
takes seconds; `pkgutil.resolve_name` imports one when it is used.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from utils.errors import Diverged, Stopped, UserError, did_you_mean


def load_function(place: str) -> Callable[..., Any]:
    """Run a user's file and return the function that `path/to/file.py:function` names.

    This runs whatever the file contains: `place` may come from an option, never from a ticket file.

    Args:
        place: the file, absolute or relative to the working directory, and a callable at its top level.

    Raises:
        UserError: the file does not exist or fails, or it has no such function.
    """
    name, function = place.rpartition(":")[::2]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"there is no file {path} to take {function} from")
    spec = spec_from_file_location(f"own_{path.stem}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be used: {complaint(error, path)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        own = (one for one in vars(module).items() if getattr(one[1], "__module__", None) == spec.name)
        names = [name for name, value in own if callable(value)]
        raise UserError(f"there is no function {function} in {path}{did_you_mean(function, names)}")
    return found


@contextmanager
def reported(path: Path, failed: str) -> Iterator[None]:
    """Report what goes wrong in a user's file as one message, with its line; for a block, or to decorate a function.

    Args:
        path: the file.
        failed: what failed, in words; begins the message.

    Raises:
        UserError: any error other than those of this tool.
    """
    try:
        yield
    except (UserError, Stopped, Diverged):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{failed}: {complaint(error, path)}") from error


def complaint(error: BaseException, path: Path) -> str:
    """Describe an error in a user's file, with the number of its innermost line, if the traceback has one."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
