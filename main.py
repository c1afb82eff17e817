"""Find a lottery ticket, train it, check it, report it: `python main.py --config FILE.yml [--option value ...]`."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from importlib import import_module

from args_helper import Config, parse_args
from utils.errors import Diverged, Stopped, UserError, one_message

MODES = {
    "list": "trainers.listing:print_list",
    "dry_run": "trainers.plan:print_plan",
    "sweep": "trainers.sweep:run_sweep",
    "report": "trainers.reporting.report:make_report",
    "evaluate": "trainers.analysis:evaluate_network",
    "compare_rounding": "trainers.analysis:compare_rounding",
    "mode_connect": "trainers.mode_connect:connect_modes",
    "compare_tickets": "trainers.overlap:compare_tickets",
    "export": "trainers.export:export_runs",
    "only_sanity": "trainers.pipeline:check_runs",
    "": "trainers.pipeline:run_trials",
}
"""Option that asks for it -> module:function; without any of them, runs are run. torch takes seconds to import: the
function is looked up only when the options are right."""


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        The exit code: 0 done, 2 what was given cannot be used, 3 the run diverged, 75 its `max_time` was over, 128 + n
        stopped by signal n.
    """
    warnings.showwarning = _say_warning
    threading.excepthook = _say_thread_error
    try:
        config = parse_args(argv)
        if config.print_config:
            print(config.to_yaml(), end="")
            return 0
        _mode(config)(config)
    except UserError as error:
        print(f"error: {one_message(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a path that may not be looked at, is too long, goes round in circles
        print(f"error: {one_message(error.strerror or error)}: {one_message(error.filename)}", file=sys.stderr)
        return 2
    except (Stopped, Diverged) as ended:
        print(ended, file=sys.stderr)
        return ended.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _mode(config: Config) -> Callable[[Config], object]:
    chosen = next(name for name in MODES if not name or getattr(config, name))
    module, _, function = MODES[chosen].partition(":")
    return getattr(import_module(module), function)


def _say_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {one_message(message)}", file=sys.stderr)


def _say_thread_error(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread of its own, and passes what goes wrong there on: here one line is enough."""
    if isinstance(failed.exc_value, OSError):
        print(f"warning: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


if __name__ == "__main__":
    sys.exit(main())
