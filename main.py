"""Find a lottery ticket, train it, check it, report it: `python main.py --config FILE.yml [--option value ...]`."""

from __future__ import annotations

import sys
import warnings

from args_helper import parse_args
from utils.errors import Stopped, UserError


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code (2: what was given cannot be used)."""
    warnings.showwarning = _say_warning
    try:
        config = parse_args(argv)
        if config.print_config:
            print(config.to_yaml(), end="")
            return 0
        from trainers.pipeline import run_trials  # torch takes seconds to import: not before the options are right

        run_trials(config)
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


def _say_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
