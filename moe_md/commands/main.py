"""The command line: `moe-md init | demo | train | evaluate | validate | run | export | bench`.

Settings come from dataclasses and builders; a TOML file (`--settings`) holds
them under the same names, one table per command, and options override it. An
unknown key is an error. What a person got wrong is answered in one line.

A command imports what it runs when it runs: help and mistyped options are
answered before jax is loaded.
"""

import argparse
import json
import sys
import typing
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import shtab

from moe_md.checks import kind_of
from moe_md.commands import settings_file
from moe_md.compilation_cache import quieten_cache_warnings, use_compilation_cache
from moe_md.failures import SimulationError
from moe_md.files import plain, write_atomic, write_json
from moe_md.settings import (
    DATA,
    PACKAGED_FRAMES,
    BenchSettings,
    DataSettings,
    DemoSettings,
    ExportSettings,
    RunSettings,
    TrainSettings,
    ValidateSettings,
    help_of,
)

if typing.TYPE_CHECKING:
    import jax

    from moe_md.checkpoint import Checkpoint
    from moe_md.data import Dataset
    from moe_md.experts.base import Expert

EPILOG = """\
first steps:
  moe-md demo                                     the packaged potentials on a slab, with pictures
  moe-md init my.toml --data frames.xyz           settings for your frames, with what they mean
  moe-md train --settings my.toml
  moe-md validate training/checkpoint.msgpack --settings my.toml
  moe-md run --structure slab.xyz --region-around C,O --checkpoint training/checkpoint.msgpack

Every folder of results holds settings.toml, with which it can be made again.
Exit codes: 0 done, 1 a run failed (its last good state is saved), 2 wrong input, 130 interrupted.
Completion by tab, in bash: eval "$(moe-md --print-completion bash)"
"""


def main(arguments: typing.Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default those of the process.

    Returns:
        Exit code: 0; 1 after a run that failed, 2 after an error of the person's,
        each one line on stderr; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(arguments)
    parsed.typed = arguments
    say = partial(print, file=sys.stderr, flush=True) if parsed.json else partial(print, flush=True)
    use_compilation_cache()
    try:
        with warnings.catch_warnings():
            _quieten()
            result = parsed.command(parsed, say)
    except (ValueError, OSError, FloatingPointError, SimulationError) as error:
        if parsed.traceback:
            raise
        text = " ".join(str(error).split())
        print(f"moe-md: error: {text}", file=sys.stderr)
        if parsed.json:
            print(json.dumps({"error": text}))
        return 1 if isinstance(error, (FloatingPointError, SimulationError)) else 2
    except KeyboardInterrupt:
        print("moe-md: interrupted", file=sys.stderr)
        return 130
    if parsed.json:
        print(json.dumps(result, default=plain))
    return 0


def run_demo(parsed, say: Callable) -> dict:
    """`moe-md demo`"""
    settings = settings_file.settings(DemoSettings, "demo", parsed)
    from moe_md.commands import demo

    settings = demo.small(settings) if parsed.small else settings
    _echo(parsed, {"demo": settings})
    result = demo.run(settings, parsed.out, say)
    say(
        f"{result['n_atoms']} atoms, {result['f']:.1%} on the expensive expert: {result['speedup']:.1f} times"
        f" faster than the expensive expert alone, {result['fraction_of_bound']:.0%} of what its share of the"
        f" atoms allows (S_max = {result['s_max']:.1f})."
    )
    return result


def run_train(parsed, say: Callable) -> dict:
    """`moe-md train`"""
    tables = settings_file.tables(parsed.settings)
    training = settings_file.settings(TrainSettings, "training", parsed)
    from moe_md import checkpoint as checkpoints
    from moe_md.data import split_by_group
    from moe_md.training import cotrain, evaluation

    dataset = _dataset(parsed)
    start = parsed.start or tables.get("start")
    start = None if start is None else checkpoints.load(start)
    same = start is not None and not {"expensive", "cheap"} & set(tables)
    first, second = start.experts if same else _experts(tables, dataset, training.metal, parsed.settings)
    dataset = dataset._replace(species=first.species)
    train, validation = dataset, None
    if parsed.validation_fraction != 0:
        train, validation = split_by_group(
            dataset, validation_fraction=parsed.validation_fraction, seed=training.seed
        )
    say(_counts("train", train) + ("" if validation is None else "; " + _counts("validation", validation)))
    folder = Path(parsed.out)
    devices = _devices(parsed.devices)
    begun = (
        {} if parsed.start is None and "start" not in tables else {"start": parsed.start or tables["start"]}
    )
    own = {} if same else {"expensive": dict(first.config), "cheap": dict(second.config)}
    _echo(
        parsed,
        {**begun, "data": settings_file.settings(DataSettings, "data", parsed), **own, "training": training},
    )
    result = cotrain.cotrain(
        (first, second),
        train,
        training,
        validation=validation,
        start=start,
        folder=folder,
        progress=not parsed.quiet,
        devices=devices,
    )
    split = {"validation_fraction": parsed.validation_fraction, "split_seed": training.seed}
    result = result._replace(settings={**result.settings, **split})
    checkpoints.save(folder / "checkpoint.msgpack", result)
    record = {"settings": result.settings, "experts": [first.config, second.config], **result.record}
    write_json(folder / "record.json", record)
    if result.record["history"]:
        kept = result.record["best_step"] or result.record["history"][-1]["step"]
        (scores,) = (h for h in result.record["history"] if h["step"] == kept)
        say(f"step {kept}: " + evaluation.describe(scores))
    say(f"wrote {folder / 'checkpoint.msgpack'}")
    return {"checkpoint": str(folder / "checkpoint.msgpack"), **record}


def run_evaluate(parsed, say: Callable) -> dict:
    """`moe-md evaluate`"""
    from moe_md import checkpoint as checkpoints
    from moe_md.experts.base import check_two_experts
    from moe_md.training import evaluation

    model = checkpoints.load(parsed.checkpoint)
    check_two_experts(model.experts, "experts of the checkpoint")
    dataset = _part(
        _dataset(parsed, model.experts[0].species), model, parsed.split, parsed.validation_fraction
    )
    _echo(parsed, {"data": settings_file.settings(DataSettings, "data", parsed)})
    scores = evaluation.evaluate_by_kind(model.experts, model.params, dataset)
    report = {
        "checkpoint": str(parsed.checkpoint),
        "data": settings_file.settings(DataSettings, "data", parsed).file,
        "split": parsed.split,
        "kinds": scores,
    }
    folder = Path(parsed.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", report)
    say(_table_of_errors(scores))
    say(f"wrote {folder / 'evaluation.json'}")
    return report


def run_validate(parsed, say: Callable) -> dict:
    """`moe-md validate`"""
    settings = settings_file.settings(ValidateSettings, "validate", parsed)
    from moe_md import checkpoint as checkpoints
    from moe_md.commands import validate
    from moe_md.experts.base import check_two_experts

    model = checkpoints.load(parsed.checkpoint)
    check_two_experts(model.experts, "experts of the checkpoint", strictly_local=True)
    split = parsed.split
    if split is None:
        known = parsed.validation_fraction or model.settings.get("validation_fraction")
        split = (
            "validation"
            if settings_file.settings(DataSettings, "data", parsed).file == DATA and known
            else "all"
        )
    dataset = _part(_dataset(parsed, model.experts[0].species), model, split, parsed.validation_fraction)
    names = {
        "checkpoint": str(parsed.checkpoint),
        "data": settings_file.settings(DataSettings, "data", parsed).file,
        "split": split,
    }
    settings = validate.small(settings) if parsed.small else settings
    _echo(parsed, {"data": settings_file.settings(DataSettings, "data", parsed), "validate": settings})
    return validate.run(model, dataset, settings, parsed.out, say, names=names)


def run_dynamics(parsed, say: Callable) -> dict:
    """`moe-md run`"""
    settings = settings_file.settings(RunSettings, "run", parsed)
    from moe_md.commands import run as md

    _echo(parsed, {"run": settings})
    return md.run(settings, parsed.out, say)


def run_export(parsed, say: Callable) -> dict:
    """`moe-md export`"""
    settings = settings_file.settings(ExportSettings, "export", parsed)
    from moe_md.commands import export

    script = export.lammps(settings, parsed.out)
    _echo(parsed, {"export": settings})
    say(f"wrote {script}: python {script}, or mpirun -np 2 python {script}")
    return {"script": str(script)}


def run_bench(parsed, say: Callable) -> dict:
    """`moe-md bench`"""
    settings = settings_file.settings(BenchSettings, "bench", parsed)
    from moe_md.commands import bench

    _echo(parsed, {"bench": settings})
    return bench.run(settings, parsed.out, say)


def run_init(parsed, say: Callable) -> dict:
    """`moe-md init`"""
    path, metal = Path(parsed.file), TrainSettings().metal
    if path.exists():
        raise ValueError(f"file must be a new one, got {path}, which is there.")
    species = DataSettings().file if parsed.data is None else parsed.data
    first, second = _experts({}, _dataset(argparse.Namespace(settings=None, file=species)), metal, path)
    content = {
        "data": DataSettings(file=species),
        **{name: dict(e.config) for name, e in (("expensive", first), ("cheap", second))},
        "training": TrainSettings(),
        "run": RunSettings(
            structure="slab.extxyz", region_around=",".join(s for s in first.species if s != metal)
        ),
    }
    header = [
        "Settings of moe-md: an option on the command line overrides a key, a key that is left out has its "
        "default.",
        "moe-md train --settings FILE; moe-md run --settings FILE --checkpoint training/checkpoint.msgpack",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, settings_file.written(content, header).encode())
    say(f"wrote {path}: edit [data], then moe-md train --settings {path}")
    return {"file": str(path)}


def _echo(parsed, content: dict) -> None:
    settings_file.echo(parsed.out, content, parsed.typed)


def _dataset(parsed, species=None) -> "Dataset":
    keys = asdict(settings_file.settings(DataSettings, "data", parsed))
    from moe_md.data import PACKAGED, load_dataset

    file = keys.pop("file")
    return load_dataset(PACKAGED[file]() if file in PACKAGED else file, species, **keys)


def _part(dataset: "Dataset", model: "Checkpoint", split: str, fraction: float | None) -> "Dataset":
    """The frames of a split, made as training made it."""
    from moe_md.data import split_by_group

    if split == "all":
        return dataset
    fraction = model.settings.get("validation_fraction") if fraction is None else fraction
    if not fraction:
        raise ValueError(
            "validation_fraction must be given for a split: the checkpoint does not say how its data were"
            " split."
        )
    seed = model.settings.get("split_seed", model.settings.get("seed", 0))
    train, validation = split_by_group(dataset, validation_fraction=fraction, seed=seed)
    return {"train": train, "validation": validation}[split]


def _counts(name: str, dataset: "Dataset") -> str:
    from moe_md.data import summary

    counts = summary(dataset)
    return f"{name}: {counts['frames']} frames of {counts['groups']} groups, {counts['atoms']} atoms"


def _experts(tables: dict, dataset: "Dataset", metal: str, file) -> "tuple[Expert, Expert]":
    """The two experts of a settings file; what it leaves out is filled in."""
    import inspect

    from moe_md.experts.base import BUILDERS, build

    species = [metal, *(s for s in dataset.species if s != metal)]
    defaults = {
        "expensive": {"builder": "allegro", "species": species, "cutoff": 5.0},
        "cheap": {
            "builder": "power_spectrum",
            "species": species,
            "cutoff": 5.0,
            "l_max": 4,
            "allowed_species": [metal],
        },
    }
    made = []
    for name, default in defaults.items():
        table = tables.get(name)
        config = (
            default
            if table is None
            else {**{k: default[k] for k in ("builder", "species", "cutoff")}, **table}
        )
        builder = config["builder"]
        if not isinstance(builder, str) or builder not in BUILDERS:
            raise ValueError(
                f"builder of [{name}] of {file} must be one of {sorted(BUILDERS)}, got {builder!r}."
            )
        allowed = ("builder", *inspect.signature(BUILDERS[builder]).parameters)
        settings_file.check_keys(config, allowed, f"[{name}] of {file}")
        made.append(build(config))
    first, second = made
    return first, second


def _table_of_errors(scores: dict) -> str:
    def number(value, form):
        return "-" if value is None else format(value, form)

    lines = [f"{'kind':20s} {'frames':>6s} {'expert':10s} {'meV/atom':>9s} {'meV/Å':>8s} {'GPa':>7s}"]
    for kind, entry in scores.items():
        for who in ("expensive", "cheap", "mixed"):
            e = entry[who]
            if all(v is None for v in e.values()):
                continue
            lines.append(
                f"{kind:20s} {entry['frames']:6d} {who:10s} {number(e['energy_meV_per_atom'], '9.1f'):>9s} "
                f"{number(e['forces_meV_per_A'], '8.0f'):>8s} {number(e['stress_GPa'], '7.2f'):>7s}"
            )
    return "\n".join(lines)


def _devices(wanted: str | None) -> "list[jax.Device] | None":
    """Those that `--devices` asks for."""
    if wanted is None:
        return None
    import jax

    found = jax.devices()
    if wanted == "all":
        return found
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(found):
        raise ValueError(
            f"devices must be 'all' or a number from 1 to the {len(found)} that jax finds, got {wanted!r}."
        )
    return found[: int(wanted)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-md",
        description="Molecular dynamics with several potentials and one energy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(
        parser,
        "--print-completion",
        help="a script that completes commands and options by tab, for bash, zsh or tcsh",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(
        required=True, metavar="init | demo | train | evaluate | validate | run | export | bench"
    )

    def command(name: str, fn, out: str, text: str, settings_class=None):
        sub = commands.add_parser(name, help=text, description=text + ".")
        sub.set_defaults(command=fn)
        sub.add_argument("--out", default=out, metavar="DIR", help=f"folder of the results (default {out})")
        sub.add_argument("--settings", metavar="FILE", help="TOML file; options override it")
        sub.add_argument(
            "--json", action="store_true", help="the result as JSON on stdout, all else on stderr"
        )
        for item in fields(settings_class) if settings_class else ():
            kind = kind_of(typing.get_type_hints(settings_class)[item.name])
            if kind in (int, float, str):
                default = [] if item.default in (None, "") else [f"default {item.default}"]
                text = "; ".join(([help_of(item)] if help_of(item) else []) + default).replace("%", "%%")
                sub.add_argument(
                    f"--{item.name.replace('_', '-')}", type=kind, help=text, metavar=kind.__name__
                )
        return sub

    sub = commands.add_parser(
        "init",
        help="Write a settings file with all keys and what they mean",
        description="Write a settings file with all keys and what they mean.",
    )
    sub.set_defaults(command=run_init)
    sub.add_argument("file", nargs="?", default="moe_md.toml", help="a new file (default moe_md.toml)")
    sub.add_argument(
        "--data",
        metavar="FILE",
        help=f"extended XYZ whose species it is for, or packaged frames (default {DATA})",
    )
    sub.add_argument("--json", action="store_true", help="the result as JSON on stdout, all else on stderr")

    sub = command(
        "demo",
        run_demo,
        "demo",
        "Run a CO-covered Pt(111) slab under two experts and report on it",
        DemoSettings,
    )
    sub.add_argument("--small", action="store_true", help="a small slab and few steps, for tests")

    sub = command(
        "train",
        run_train,
        "training",
        "Train an expensive and a cheap expert together; resumes where it stopped",
        TrainSettings,
    )
    _data_options(sub)
    sub.add_argument(
        "--validation-fraction",
        type=float,
        default=0.15,
        help="share of frames held out by group; 0 for none (default 0.15)",
    )
    sub.add_argument(
        "--start",
        metavar="CHECKPOINT",
        help=(
            "name or path: begin with its parameters, and its experts unless settings name others; in a"
            " settings file a line of its own, on top"
        ),
    )
    sub.add_argument(
        "--devices",
        metavar="N",
        help=(
            "share the rows of each batch among N devices, or all (default one); it may change when a"
            " training goes on"
        ),
    )
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("evaluate", run_evaluate, "evaluation", "Errors of a checkpoint on labelled frames")
    sub.add_argument("checkpoint", help="name or path")
    _data_options(sub)
    sub.add_argument(
        "--split", choices=("train", "validation", "all"), default="all", help="which frames (default all)"
    )
    sub.add_argument("--validation-fraction", type=float, help="of the split; default what training used")

    sub = command(
        "validate",
        run_validate,
        "validation",
        "Errors, properties, seam and dynamics of a checkpoint, as a report",
        ValidateSettings,
    )
    sub.add_argument("checkpoint", help="name or path")
    _data_options(sub)
    sub.add_argument(
        "--split",
        choices=("train", "validation", "all"),
        help=(
            "which frames (default validation for the packaged frames where the checkpoint says how it was"
            " split, else all)"
        ),
    )
    sub.add_argument("--validation-fraction", type=float, help="of the split; default what training used")
    sub.add_argument("--small", action="store_true", help="few steps of dynamics, for tests")

    command("run", run_dynamics, "run", "Molecular dynamics of a structure", RunSettings)
    sub = command(
        "export",
        run_export,
        "exported",
        "Write a folder that runs a structure in another program",
        ExportSettings,
    )
    sub.add_argument("program", choices=("lammps",), help="that runs it")
    command(
        "bench", run_bench, "bench", "Time a mixture against either expert alone, on a slab", BenchSettings
    )
    return parser


def _data_options(sub) -> None:
    sub.add_argument(
        "--data",
        dest="file",
        metavar="FILE",
        help=f"extended XYZ, or packaged frames: {', '.join(PACKAGED_FRAMES)} (default {DATA})",
    )
    for name in ("energy_key", "forces_key", "stress_key", "group_key", "kind_key"):
        item = DataSettings.__dataclass_fields__[name]
        default, text = item.default, help_of(item)
        sub.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="NAME",
            help=text + (f" (default {default})" if default else ""),
        )


def _say_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning in one line, as `warnings.showwarning` is called."""
    print(f"moe-md: warning: {message}", file=sys.stderr)


def _quieten() -> None:
    quieten_cache_warnings()
    warnings.showwarning = _say_warning  # ty: ignore[invalid-assignment]  assigning is how it is replaced
    # jax-md mixes integer types where 64 bits are on.
    warnings.filterwarnings(
        "ignore", message="scatter inputs have incompatible types", category=FutureWarning
    )


if __name__ == "__main__":
    sys.exit(main())
