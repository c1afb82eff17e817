"""Find a lottery ticket, train it, check it, report it: `python main.py --config FILE.yml [--option value ...]`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module

from args_helper import Config, parse_args
from utils.errors import Stopped, UserError

MODES = {
    "sweep": "trainers.sweep:run_sweep",
    "report": "trainers.reporting.report:make_report",
    "evaluate": "trainers.analysis:evaluate_network",
    "compare_rounding": "trainers.analysis:compare_rounding",
    "mode_connect": "trainers.mode_connect:connect_modes",
    "only_sanity": "trainers.pipeline:check_runs",
    "": "trainers.pipeline:run_trials",
}
"""Option that asks for it -> module:function; without any of them, runs are run. torch takes seconds to import: the
function is looked up only when the options are right."""


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code (2: what was given cannot be used)."""
    warnings.showwarning = _say_warning
    try:
        config = parse_args(argv)
        if config.print_config:
            print(config.to_yaml(), end="")
            return 0
        _mode(config)(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _mode(config: Config) -> Callable[[Config], object]:
    chosen = next(name for name in MODES if not name or getattr(config, name))
    module, _, function = MODES[chosen].partition(":")
    return getattr(import_module(module), function)


def _say_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
