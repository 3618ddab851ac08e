"""The command line: options, dispatch and exit codes of `moe-md COMMAND`.

Options come from the dataclasses of `moe_md.settings`. A TOML file (`--settings`)
holds the same names, one table per command; options override the file, and an
unknown key is an error. A wrong input is answered in one line.

The parser of every command is here, so that help and mistyped options are
answered without jax. Each command is `command(settings, parsed, log)` of the
module of its name, imported when the command runs.
"""

import argparse
import contextlib
import importlib
import json
import sys
import typing
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import shtab

from moe_md import memory
from moe_md.checks import kind_of
from moe_md.commands import settings_file, terminal
from moe_md.compilation_cache import quieten_cache_warnings, use_compilation_cache
from moe_md.failures import SimulationError, Terminated, sigterm_as_exception
from moe_md.files import locked, plain
from moe_md.renamed import old_keys
from moe_md.settings import (
    DATA,
    BenchSettings,
    DataSettings,
    DemoSettings,
    EnvironmentSettings,
    ExportSettings,
    RegionScanSettings,
    RunSettings,
    TrainSettings,
    ValidateSettings,
    help_of,
)

EPILOG = """\
first steps:
  moe-md demo                                     the packaged potentials on a slab, with pictures
  moe-md data frames.xyz                          what your frames hold, and what looks wrong
  moe-md init my.toml --data frames.xyz           a settings file for your frames, each key explained
  moe-md train --settings my.toml
  moe-md validate training/checkpoint.msgpack --settings my.toml
  moe-md region slab.xyz --region-around C,O --checkpoint training/checkpoint.msgpack
  moe-md run --structure slab.xyz --region-around C,O --checkpoint training/checkpoint.msgpack

Every folder of results holds settings.toml, which repeats the command.
Exit codes: 0 done, 1 a run failed (its last valid state is saved), 2 wrong input, 130 interrupted,
143 terminated. At SIGTERM, and after --max-hours, run and train save all, say how to go on, and exit with 0.
Tab completion in bash: eval "$(moe-md --print-completion bash)"
"""
SPLITS = ("train", "validation", "all")
OPTION_NAMES = {"file": "data"}  # keys of settings whose option has another name


def main(arguments: typing.Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; default those of the process.

    Returns:
        Exit code: 0; 1 after a run that failed and 2 after a wrong input, each
        with one line on stderr; 130 after Ctrl-C; 143 after SIGTERM, where the
        command cannot be resumed.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with terminal.readable_output():
        return _answer(arguments)


def _answer(arguments: list[str]) -> int:
    """The exit code of a command, whose results, warnings and errors are printed."""
    parsed = make_parser().parse_args(arguments)
    parsed.typed = arguments
    log = partial(print, file=sys.stderr if parsed.json else None, flush=True)
    use_compilation_cache()
    try:
        with warnings.catch_warnings(), sigterm_as_exception():
            _show_warnings_in_one_line()
            result = _run_command(parsed, log)
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        if parsed.traceback or not _is_answered(error):
            raise
        text = " ".join(str(error).split())
        print(f"moe-md: error: {text}", file=sys.stderr)
        if parsed.json:
            print(json.dumps({"error": text}))
        return 2 if isinstance(error, (ValueError, OSError)) else 1
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        print(f"moe-md: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return 143 if terminated else 130
    if parsed.json:
        print(json.dumps(result, default=plain))
    return 0


def _is_answered(error: Exception) -> bool:
    """Whether an error is answered in one line; others are faults of the program."""
    return isinstance(error, (ValueError, OSError, FloatingPointError, SimulationError, MemoryError))


def _run_command(parsed: argparse.Namespace, log: Callable) -> dict:
    """Read the settings of a command, then import and run it; returns its result."""
    settings = None
    if parsed.settings_class is not None:
        settings = settings_file.settings(parsed.settings_class, parsed.table, parsed)
    module = importlib.import_module(f"moe_md.commands.{parsed.command}")
    folder = getattr(parsed, "out", None)
    with (
        contextlib.nullcontext() if folder is None else locked(folder),
        memory.naming(_memory_remedy(settings)),
    ):
        return module.command(settings, parsed, log)


def _memory_remedy(settings) -> str:
    """The settings of a command that bound its memory, and their values."""
    names = [name for name in ("chunk_size", "max_atoms") if hasattr(settings, name)]
    lower = " and ".join(f"{name}, now {getattr(settings, name)}" for name in names)
    return f"lower {lower}, or use fewer atoms" if names else "use fewer or smaller frames"


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="moe-md",
        description="Molecular dynamics with several potentials and one energy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(
        parser,
        "--print-completion",
        help="print a script that completes commands and options by tab, for bash, zsh or tcsh",
    )
    parser.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="data | init | demo | train | evaluate | validate | region | run | export | bench | models",
    )
    _add_data(commands)
    _add_init(commands)
    _add_demo(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_validate(commands)
    _add_region(commands)
    text = "Molecular dynamics of a structure; resumes a run that was stopped"
    _add_max_hours(_add(commands, "run", text, RunSettings, "run", out="run"))
    _add_export(commands)
    text = "Time a mixture against either expert alone, on a slab"
    _add(commands, "bench", text, BenchSettings, "bench", out="bench")
    _add(commands, "models", "List the checkpoints of the package")
    return parser


def _add_data(commands) -> None:
    text = "What labelled frames hold, kind by kind, and what looks wrong about them"
    sub = _add(commands, "data", text, DataSettings, "data")
    sub.add_argument("frames", nargs="?", help="files, folders or patterns, as --data")


def _add_init(commands) -> None:
    sub = _add(commands, "init", "Write a settings file that explains every key")
    sub.add_argument("path", nargs="?", default="moe_md.toml", help="a new file (default moe_md.toml)")
    sub.add_argument(
        "--data",
        dest="file",
        metavar="FILE",
        help=f"your frames: files, folders or patterns, or packaged frames (default {DATA})",
    )


def _add_demo(commands) -> None:
    text = "Run a CO-covered Pt(111) slab under two experts and report on it"
    sub = _add(commands, "demo", text, DemoSettings, "demo", out="demo")
    sub.add_argument("--small", action="store_true", help="a small slab and few steps, for tests")


def _add_train(commands) -> None:
    text = "Train an expensive and a cheap expert together; resumes a training that was stopped"
    sub = _add(commands, "train", text, TrainSettings, "training", out="training")
    _add_settings_options(sub, DataSettings)
    _add_settings_options(sub, EnvironmentSettings)
    sub.add_argument(
        "--validation-fraction",
        type=float,
        default=0.15,
        help="fraction of the groups of frames used for validation; 0 for none (default 0.15)",
    )
    sub.add_argument(
        "--start",
        metavar="CHECKPOINT",
        help=(
            "name or path: start from its parameters, and from its experts unless the settings file"
            " describes others; in a settings file the key start, above all tables"
        ),
    )
    sub.add_argument(
        "--devices",
        metavar="N",
        help=(
            "distribute the rows of each batch over N devices, or all (default one); a resumed training"
            " may change it"
        ),
    )
    _add_max_hours(sub)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_evaluate(commands) -> None:
    text = "Errors of a checkpoint on labelled frames"
    sub = _add(commands, "evaluate", text, DataSettings, "data", out="evaluation")
    sub.add_argument("checkpoint", help="name or path")
    sub.add_argument("--split", choices=SPLITS, default="all", help="the frames to use (default all)")
    _add_validation_fraction(sub)


def _add_validate(commands) -> None:
    text = "Errors, properties, expert boundary and dynamics of a checkpoint, as a report"
    sub = _add(commands, "validate", text, ValidateSettings, "validate", out="validation")
    sub.add_argument("checkpoint", help="name or path")
    _add_settings_options(sub, DataSettings)
    sub.add_argument(
        "--split",
        choices=SPLITS,
        help=(
            "the frames to use (default validation for the packaged frames if the checkpoint records its"
            " split, else all)"
        ),
    )
    _add_validation_fraction(sub)
    sub.add_argument("--small", action="store_true", help="few steps of dynamics, for tests")


def _add_region(commands) -> None:
    text = "How large a region must be: errors and speed of several sizes, and the options for moe-md run"
    sub = _add(commands, "region", text, RegionScanSettings, "region", out="region")
    sub.add_argument("structure", nargs="?", default=argparse.SUPPRESS, help="as --structure")


def _add_export(commands) -> None:
    text = "Write a folder that runs a structure in another program"
    sub = _add(commands, "export", text, ExportSettings, "export", out="exported")
    sub.add_argument("program", choices=("lammps",), help="the program that runs it")


def _add_max_hours(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--max-hours",
        type=float,
        help=(
            "save all and exit after so many hours, as at SIGTERM; the same command goes on. Leave time for a"
            " chunk of steps and for saving"
        ),
    )


def _add_validation_fraction(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--validation-fraction", type=float, help="of the split; default the fraction used in training"
    )


def _add(
    commands, name: str, text: str, settings_class=None, table: str | None = None, out: str | None = None
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: the subparsers of `moe-md`.
        name: of the command and of its module.
        text: one line of help.
        settings_class: dataclass of its settings; its fields become options.
        table: of the settings file, with these settings.
        out: default folder of the results; None for a command that writes none.

    Returns:
        The parser of the command.
    """
    sub = commands.add_parser(name, help=text, description=text + ".")
    sub.set_defaults(settings_class=settings_class, table=table)
    sub.add_argument(
        "--json", action="store_true", help="print the result as JSON on stdout, all else on stderr"
    )
    if out is not None:
        sub.add_argument("--out", default=out, metavar="DIR", help=f"folder of the results (default {out})")
    if settings_class is not None:
        sub.add_argument("--settings", metavar="FILE", help="TOML file; options override it")
        _add_settings_options(sub, settings_class)
    return sub


def _add_settings_options(sub: argparse.ArgumentParser, settings_class) -> None:
    """Add an option for each number and text among the fields of a settings dataclass."""
    hints = typing.get_type_hints(settings_class)
    for item in fields(settings_class):
        kind = kind_of(hints[item.name])
        if kind not in (int, float, str):
            continue
        text = [help_of(item)] if help_of(item) else []
        text += [] if item.default in (None, "") else [f"default {item.default}"]
        option = _option_of(OPTION_NAMES.get(item.name, item.name))
        sub.add_argument(
            option,
            dest=item.name,
            type=kind,
            help="; ".join(text).replace("%", "%%"),
            metavar=kind.__name__,
        )
        for old in old_keys(item.name):
            sub.add_argument(
                _option_of(old), action=_RenamedOption, const=option, nargs="?", help=argparse.SUPPRESS
            )


def _option_of(key: str) -> str:
    return f"--{key.replace('_', '-')}"


class _RenamedOption(argparse.Action):
    """An option of an earlier version: an error that names the new option, `const`."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"unknown option {option_string}: it is now {self.const}")


def _show_warnings_in_one_line() -> None:
    quieten_cache_warnings()
    warnings.showwarning = _print_warning  # ty: ignore[invalid-assignment]  the documented way to replace it
    # jax-md mixes integer types in float64 runs.
    warnings.filterwarnings(
        "ignore", message="scatter inputs have incompatible types", category=FutureWarning
    )


def _print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print a warning in one line; called as `warnings.showwarning`."""
    print(f"moe-md: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
