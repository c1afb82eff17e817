"""Find a lottery ticket, train it, check it, report it: `python main.py --config FILE.yml [--option value ...]`.

It reads the options, looks the mode up in `MODES` and runs it; the default mode is the story in `trainers.pipeline`.
Errors that a user can mend become one line here, and an exit code.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from pkgutil import resolve_name

from args_helper import Config, parse_args
from utils.distributed.launch import launched, printed_once, wait_for_first
from utils.errors import DistributedError, Diverged, Stopped, UserError, is_out_of_memory, printable

MODES = {
    "list": "trainers.listing:print_list",
    "sweep": "trainers.sweeping.sweep:run_sweep",
    "dry_run": "trainers.dry_run:print_plan",
    "report": "trainers.reporting.report:make_report",
    "evaluate": "trainers.analysis.evaluate:evaluate_network",
    "compare_rounding": "trainers.analysis.rounding:compare_rounding",
    "mode_connect": "trainers.analysis.mode_connectivity:connect_modes",
    "compare_tickets": "trainers.analysis.ticket_overlap:compare_tickets",
    "pack": "data.packs.packing:pack_folder",
    "check_data": "data.packs.checking:check_data",
    "export": "trainers.export.export:export_runs",
    "only_sanity": "trainers.missing_checks:check_runs",
    "": "trainers.pipeline:run_trials",
}
"""Option that selects a mode -> module:function; with none of them, trials are run. torch takes seconds to import, so
the function is imported only after the options are checked. The first row whose option is set wins."""

FIRST_COMMANDS = """nothing was asked for; to begin with:
  python main.py --config configs/quickstart.yml    find, train and check a ticket, in minutes on a CPU
  python main.py --list algorithms                  what there is; also models, datasets, configs
  python main.py --help                             every option"""


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        argv: the words after the program's name; None: the process's own.

    Returns:
        The exit code: 0 done, 1 another process of the run was lost, 2 the input cannot be used, 3 the run diverged,
        75 `max_time` was reached, 128 + n stopped by signal n.
    """
    warnings.showwarning = _say_warning
    threading.excepthook = _say_thread_error
    with printed_once():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    try:
        if not (sys.argv[1:] if argv is None else argv):
            raise UserError(FIRST_COMMANDS)
        config = parse_args(argv)
        if config.print_config:
            print(config.to_yaml(), end="")
            return 0
        _mode(config)(config)
    except UserError as error:
        _say(f"error: {printable(error)}")
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as head does; what was to be done may not be done
        sys.stdout = None
        return 141  # 128 + SIGPIPE
    except OSError as error:  # no permission, a path that is too long, a loop of links
        where = f": {printable(error.filename)}" if error.filename else ""
        _say(f"error: {printable(error.strerror or error)}{where}")
        return 2
    except (Diverged, DistributedError) as ended:
        _say(ended)
        return ended.exit_code
    except Stopped as stopped:
        here = launched()
        if here.rank:
            return 0  # rank 0 prints it for all ranks, once it has saved everything
        print(stopped, file=sys.stderr)
        return 0 if here.may_restart else stopped.exit_code  # torchrun restarts processes that end with another code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = ": ".join(filter(None, ["out of memory", printable(str(error).partition("\n")[0])]))
        _say(f"error: {told}; a smaller batch_size, accumulate, or a smaller network needs less")
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _mode(config: Config) -> Callable[[Config], object]:
    chosen = next(name for name in MODES if not name or getattr(config, name))
    if chosen and launched().world > 1:
        raise UserError(f"{chosen} runs in one process: start it with python, not with torchrun")
    _say_how_to_share(config)
    return resolve_name(MODES[chosen])


def _say_how_to_share(config: Config) -> None:
    if (config.multiprocessing_distributed or config.world_size > 1) and not launched().by_torchrun:
        warnings.warn(
            "one process does all the work: several share it when the run is started by torchrun, as in "
            "torchrun --nproc-per-node=2 main.py ...",
            stacklevel=2,
        )


def _say(text: object) -> None:
    """Print an error; rank 0 goes first, and its error is often the only one (see `HEAD_START`)."""
    wait_for_first()
    which = f"rank {launched().rank}: " if launched().rank else ""
    print(f"{which}{text}", file=sys.stderr)


def _say_warning(message: Warning | str, *_: object) -> None:
    if launched().rank == 0:
        print(f"warning: {printable(message)}", file=sys.stderr)


def _say_thread_error(failed: threading.ExceptHookArgs) -> None:
    """Print one line for an OSError in a thread, because TensorBoard's writer thread may raise one."""
    if isinstance(failed.exc_value, OSError):
        print(f"warning: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


if __name__ == "__main__":
    sys.exit(main())
