"""The command line: `moe-md demo | train | evaluate | validate | run | export | bench`.

Settings come from dataclasses and builders; a TOML file (`--settings`) holds
them under the same names, one table per command, and options override it. An
unknown key is an error. What a person got wrong is answered in one line.
"""

import argparse
import contextlib
import hashlib
import inspect
import json
import os
import re
import sys
import time
import tomllib
import typing
import warnings
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax_md import space

from moe_md import checkpoint as checkpoints
from moe_md import demo, experts, export, regions, simulate, validate
from moe_md.analysis import errors
from moe_md.analysis.blending import BlendWatch
from moe_md.analysis.bulk import relax_fcc
from moe_md.analysis.h5md import H5MDWriter
from moe_md.analysis.restart import Restart, load_restart
from moe_md.analysis.trajectory import LastState, LogWriter, XYZWriter, drift
from moe_md.data import PACKAGED, Dataset, load_dataset, read_frames, split_by_group, summary
from moe_md.mixture import mixture_neighbor_list
from moe_md.settings import check_fields, kind_of
from moe_md.training import cotrain, evaluation

TABLES = ("data", "expensive", "cheap", "training", "demo", "validate", "run", "export", "bench")
DATA = "ptco_pbe"  # the packaged frames


@dataclass(frozen=True)
class Data:
    """Labelled frames; keys of the `[data]` table of a settings file."""

    file: str = DATA  # extended XYZ, or the name of packaged frames
    energy_key: str | None = None  # name of the energy; else free_energy, else energy
    forces_key: str = "forces"  # name of the forces
    stress_key: str = "stress"  # name of the stress
    group_key: str = "origin"  # name of what frames of one trajectory share
    kind_key: str = "kind"  # name of what says which frames are alike; errors are told by kind

    def __post_init__(self):
        check_fields(self)
        for name, value in vars(self).items():
            if value == "":
                raise ValueError(f"{name} must not be empty.")


@dataclass(frozen=True)
class Run:
    """Molecular dynamics; keys of the `[run]` table of a settings file."""

    checkpoint: str = "ptco"  # name or path
    structure: str = ""  # any file that ASE reads; its last frame, with its velocities if it has any
    region_lower: float | None = None  # Å: atoms above go to the expensive expert
    region_upper: float | None = None  # Å: atoms below go to the expensive expert
    region_axis: int = 2  # normal of those planes: 0, 1 or 2
    region_around: str = ""  # chemical symbols, as C,O: the expensive expert follows these atoms
    region_core: float = 6.0  # Å around them that are all the expensive expert's
    region_blend: float = 2.0  # Å beyond, in which both share an atom
    ensemble: str = "nve"  # nve, langevin, nose_hoover or npt
    temperature_K: float = 300.0  # of the thermostat, and of the velocities where the file has none
    friction_per_fs: float = 0.01  # of langevin
    tau_fs: float = 100.0  # period of the thermostat of nose_hoover and npt
    pressure_GPa: float = 0.0  # of npt
    barostat_tau_fs: float = 1000.0  # period of the barostat of npt
    timestep_fs: float = 1.0
    guide: str = ""  # checkpoint whose first expert stands in for the expensive one between two of its forces
    slow_every: int = 1  # steps between those forces; of nve and langevin
    steps: int = 1000
    relax_steps: int = 0  # walk downhill first
    log_every: int = 10  # steps
    trajectory_every: int = 100  # steps, a multiple of log_every
    trajectory_format: str = "extxyz"  # extxyz or h5md
    restart_every: int = 100  # steps, a multiple of log_every
    dtype: str = "float64"  # float32 or float64
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        if not self.structure:
            raise ValueError("structure must be given: a file that ASE reads.")
        for name, allowed in (
            ("ensemble", ("nve", "langevin", "nose_hoover", "npt")),
            ("trajectory_format", ("extxyz", "h5md")),
            ("dtype", ("float32", "float64")),
            ("region_axis", (0, 1, 2)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("steps", "relax_steps", "seed", "temperature_K"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("timestep_fs", "friction_per_fs", "tau_fs", "barostat_tau_fs", "region_blend"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("trajectory_every", "restart_every"):
            every = getattr(self, name)
            if self.log_every < 1 or every < 1 or every % self.log_every:
                raise ValueError(f"log_every must be positive and {name} a multiple of it, got {self.log_every} and {every}.")
        if self.steps % self.log_every:
            raise ValueError(f"steps must be a multiple of log_every, got {self.steps} and {self.log_every}.")
        if self.slow_every < 1 or self.log_every % self.slow_every:
            raise ValueError(f"slow_every must be positive and log_every a multiple of it, got {self.slow_every} and {self.log_every}.")
        if self.slow_every > 1 and not (self.guide and self.ensemble in ("nve", "langevin")):
            raise ValueError(f"slow_every above 1 must come with a guide and ensemble nve or langevin, got {self.guide!r} and {self.ensemble}.")
        if self.region_around and not (self.region_lower is None and self.region_upper is None):
            raise ValueError("region_around must come without region_lower and region_upper, got both.")


@dataclass(frozen=True)
class Bench:
    """A timing; keys of the `[bench]` table of a settings file."""

    checkpoint: str = "ptco"  # name or path
    columns: int = 8  # Pt atoms along x, even
    rows: int = 8  # rows of Pt atoms along y, a multiple of 4
    layers: int = 32
    rounds: int = 9
    timestep_fs: float = 1.0
    chunk_size: int = 64  # rows computed at a time
    dtype: str = "float32"  # float32 or float64
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")
        for name in ("columns", "rows", "layers", "rounds", "timestep_fs", "chunk_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")


def main(arguments: typing.Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default those of the process.

    Returns:
        Exit code: 0, or 2 after an error, which is one line on stderr.
    """
    parsed = _parser().parse_args(arguments)
    _keep_compiled_programs()
    try:
        with warnings.catch_warnings():
            _quieten()
            parsed.command(parsed)
    except (ValueError, OSError, FloatingPointError, simulate.SimulationError) as error:
        if parsed.traceback:
            raise
        print(f"moe-md: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moe-md: interrupted", file=sys.stderr)
        return 130
    return 0


def run_demo(parsed) -> None:
    """`moe-md demo`"""
    settings = _settings(demo.Settings, "demo", parsed)
    result = demo.run(demo.small(settings) if parsed.small else settings, parsed.out, _say)
    _say(
        f"{result['n_atoms']} atoms, {result['f']:.1%} on the expensive expert: {result['speedup']:.1f} times faster than the expensive "
        f"expert alone, {result['fraction_of_bound']:.0%} of the most there is to gain."
    )


def run_train(parsed) -> None:
    """`moe-md train`"""
    tables = _tables(parsed.settings)
    training = _settings(cotrain.Settings, "training", parsed)
    dataset = _dataset(parsed)
    start = parsed.start or tables.get("start")
    start = None if start is None else checkpoints.load(start)
    same = start is not None and not {"expensive", "cheap"} & set(tables)
    first, second = start.experts if same else _experts(tables, dataset, training.metal, parsed.settings)
    dataset = dataset._replace(species=first.species)
    train, validation = dataset, None
    if parsed.validation_fraction != 0:
        train, validation = split_by_group(dataset, validation_fraction=parsed.validation_fraction, seed=training.seed)
    _say(_counts("train", train) + ("" if validation is None else "; " + _counts("validation", validation)))
    folder = Path(parsed.out)
    result = cotrain.cotrain(
        (first, second),
        train,
        training,
        validation=validation,
        start=start,
        folder=folder,
        progress=not parsed.quiet,
        devices=_devices(parsed.devices),
    )
    split = {"validation_fraction": parsed.validation_fraction, "split_seed": training.seed}
    result = result._replace(settings={**result.settings, **split})
    checkpoints.save(folder / "checkpoint.msgpack", result)
    _write_json(folder / "record.json", {"settings": result.settings, "experts": [first.config, second.config], **result.record})
    if result.record["history"]:
        kept = result.record["best_step"] or result.record["history"][-1]["step"]
        (scores,) = (h for h in result.record["history"] if h["step"] == kept)
        _say(f"step {kept}: " + evaluation.describe(scores))
    _say(f"wrote {folder / 'checkpoint.msgpack'}")


def run_evaluate(parsed) -> None:
    """`moe-md evaluate`"""
    model = checkpoints.load(parsed.checkpoint)
    if len(model.experts) != 2:
        raise ValueError(f"checkpoint must hold two experts, got {len(model.experts)}.")
    dataset = _part(_dataset(parsed, model.experts[0].species), model, parsed.split, parsed.validation_fraction)
    scores = evaluation.evaluate_by_kind(model.experts, model.params, dataset)
    report = {"checkpoint": str(parsed.checkpoint), "data": _settings(Data, "data", parsed).file, "split": parsed.split, "kinds": scores}
    folder = Path(parsed.out)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "evaluation.json", report)
    _say(_table_of_errors(scores))
    _say(f"wrote {folder / 'evaluation.json'}")


def run_validate(parsed) -> None:
    """`moe-md validate`"""
    settings = _settings(validate.Settings, "validate", parsed)
    model = checkpoints.load(parsed.checkpoint)
    errors.check_two(model)
    split = parsed.split
    if split is None:
        known = parsed.validation_fraction or model.settings.get("validation_fraction")
        split = "validation" if _settings(Data, "data", parsed).file == DATA and known else "all"
    dataset = _part(_dataset(parsed, model.experts[0].species), model, split, parsed.validation_fraction)
    names = {"checkpoint": str(parsed.checkpoint), "data": _settings(Data, "data", parsed).file, "split": split}
    validate.run(model, dataset, validate.small(settings) if parsed.small else settings, parsed.out, _say, names=names)


def run_dynamics(parsed) -> None:
    """`moe-md run`"""
    settings = _settings(Run, "run", parsed)
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        _dynamics(settings, Path(parsed.out))


def run_export(parsed) -> None:
    """`moe-md export`"""
    settings = _settings(export.Settings, "export", parsed)
    model = checkpoints.load(settings.checkpoint)
    atoms = _in_a_box(_structure(settings.structure), max(e.cutoff for e in model.experts))
    region = _region(settings, atoms, len(model.experts))
    script = export.lammps(parsed.out, model, region, atoms, settings)
    _say(f"wrote {script}")


def run_bench(parsed) -> None:
    """`moe-md bench`"""
    settings = _settings(Bench, "bench", parsed)
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        _bench(settings, Path(parsed.out))


def _dynamics(settings: Run, folder: Path) -> None:
    model = checkpoints.load(settings.checkpoint)
    atoms = _structure(settings.structure)
    standing_in = checkpoints.load(settings.guide) if settings.guide else None
    guide = None if standing_in is None else (standing_in.experts[0], standing_in.params[0])
    known = model.experts[0].species
    unknown = sorted(set(atoms.symbols) - set(known))
    if unknown:
        raise ValueError(f"structure must hold the species {known} that the checkpoint knows, got {', '.join(unknown)}.")
    dtype = np.dtype(settings.dtype)
    potentials = model.experts if guide is None else (*model.experts, guide[0])
    atoms = _in_a_box(atoms, max(e.cutoff for e in potentials))
    region = _region(settings, atoms, len(model.experts))
    n_atoms = len(atoms)
    species = np.array([known.index(s) for s in atoms.symbols], np.int32)
    breathes = settings.ensemble == "npt"
    # A rectangular box is three edges to jax-md, any other its columns.
    rectangular = np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths())) and not breathes
    box = (atoms.cell.lengths() if rectangular else atoms.cell.array.T).astype(dtype)
    make_space = space.periodic if rectangular else partial(space.periodic_general, fractional_coordinates=breathes)
    displacement_fn, shift_fn = make_space(box)
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, box, model.experts, model.params, species, region, fractional_coordinates=breathes, guide=guide
    )
    integrator = _integrator(settings, shift_fn)
    run = partial(simulate.run, neighbor_fn, energy_fn, integrator, chunk_steps=settings.log_every)
    begin = {"masses": atoms.get_masses(), "key": jax.random.key(settings.seed), "box": box if breathes else None}
    position = jnp.asarray(atoms.get_scaled_positions() if breathes else atoms.get_positions(wrap=True), dtype)

    folder.mkdir(parents=True, exist_ok=True)
    restart, cut = folder / "restart.msgpack", {}
    fingerprint = {k: v for k, v in asdict(settings).items() if k != "steps"}
    trees = model.params if guide is None else (*model.params, guide[1])
    fingerprint |= {"experts": [e.config for e in potentials], "digest": _digest(trees, atoms)}
    if restart.exists():
        like = run(position, n_steps=0, temperature_K=0.0, **begin)
        state, neighbors = load_restart(restart, like.state, like.neighbors, fingerprint)
        cut = {"append": True, "until_step": state.step}
        begin = {"state": state, "neighbors": neighbors}
        n_steps = max(0, settings.steps - state.step)
        _say(f"taking up the run in {folder} at step {state.step}")
    else:
        neighbors, n_steps = neighbor_fn.allocate(position), settings.steps
        if settings.relax_steps:
            relaxed = simulate.relax(
                neighbor_fn, energy_fn, shift_fn, position, n_steps=settings.relax_steps, box=begin["box"], neighbors=neighbors
            )
            position, neighbors = relaxed.position, relaxed.neighbors
            _say(f"relaxed to {relaxed.energy:.4f} eV in {relaxed.n_steps} steps, largest force {relaxed.max_force:.3f} eV/Å")
        moving = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0 and not settings.relax_steps
        speed = {"velocity": atoms.get_velocities()} if moving else {"temperature_K": settings.temperature_K}
        begin |= {"position": position, "neighbors": neighbors, **speed}
    share = float(np.mean(np.asarray(region.gate(position, displacement_fn))[:, 0] > 0))
    _say(f"{n_atoms} atoms, {share:.1%} on the expensive expert, {settings.dtype}")

    system = {"symbols": atoms.get_chemical_symbols(), "cell": atoms.cell.array, "pbc": True}
    if isinstance(region, regions.Fixed):
        system["expert"] = region.assignment
    log = LogWriter(folder / "log.csv", **cut)
    trajectory = (
        XYZWriter(folder / "trajectory.extxyz", **system, **cut)
        if settings.trajectory_format == "extxyz"
        else H5MDWriter(folder / "trajectory.h5", **system, **cut)
    )
    watch = BlendWatch(neighbor_fn)
    keeper = Restart(restart, every=settings.restart_every // settings.log_every, fingerprint=fingerprint)
    last: list[simulate.Frame] = []

    def report(frame: simulate.Frame) -> None:
        log(frame)
        last[:] = [frame]
        if frame.step % settings.trajectory_every == 0:
            trajectory(frame)

    def say(frame: simulate.Frame) -> None:
        if frame.step % max(settings.log_every, settings.steps // 10 // settings.log_every * settings.log_every) == 0:
            _say(f"step {frame.step:7d}  {frame.time_ps:8.3f} ps  {frame.temperature_K:6.0f} K  {frame.total:.5f} eV")

    started = time.perf_counter()
    try:
        result = run(n_steps=n_steps, reporters=[report, say, *([watch] if region.moves else []), keeper, LastState(folder / "last_good.npz")], **begin)
    finally:
        keeper.close()
        log.close()
        trajectory.close()
        if last:
            final = XYZWriter(folder / "final.extxyz", **system)
            final(last[-1])
            final.close()
    seconds = time.perf_counter() - started
    record = {"settings": asdict(settings), "n_atoms": n_atoms, "f": share, "seconds": seconds, "time_ps": result.state.time_ps}
    times, energies = np.genfromtxt(folder / "log.csv", delimiter=",", names=True, usecols=("time_ps", "conserved"), unpack=True)
    if settings.ensemble != "langevin" and np.size(times) >= 20:
        slope = drift(times, energies, n_atoms)
        record |= {"drift_meV_per_atom_per_ps": slope.slope, "drift_stderr": slope.standard_error}
        _say(f"drift {slope.slope:+.5f} ± {slope.standard_error:.5f} meV/atom/ps")
    if region.moves and n_steps:
        record["blend"] = blend = watch.summary()
        if "gate_over_thermal" in blend:
            _, least, most = blend["share"][0]
            _say(f"{least:.1%} to {most:.1%} of the atoms on the expensive expert; the gate's force is {blend['gate_over_thermal']:.2%} of all force in the blend")
    _write_json(folder / "run.json", record)
    _say(f"{n_steps} steps in {seconds:.1f} s, compilation included; wrote {folder / 'log.csv'}")


def _digest(params, atoms: Atoms) -> str:
    """Of what a run starts from: another one must not be taken for it."""
    arrays = [*jax.tree.leaves(params), atoms.positions, atoms.cell.array, atoms.numbers, atoms.get_momenta()]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


def _integrator(settings: Run, shift_fn) -> simulate.Integrator:
    if settings.ensemble == "nve":
        return simulate.nve(shift_fn, settings.timestep_fs, slow_every=settings.slow_every)
    thermostat = (shift_fn, settings.timestep_fs, settings.temperature_K)
    if settings.ensemble == "langevin":
        return simulate.langevin(*thermostat, settings.friction_per_fs, slow_every=settings.slow_every)
    if settings.ensemble == "nose_hoover":
        return simulate.nose_hoover(*thermostat, settings.tau_fs)
    return simulate.npt(
        *thermostat, settings.pressure_GPa, tau_fs=settings.tau_fs, barostat_tau_fs=settings.barostat_tau_fs
    )


def _bench(settings: Bench, folder: Path) -> None:
    model = checkpoints.load(settings.checkpoint)
    demo.check_experts(model)
    shape = demo.Settings(columns=settings.columns, rows=settings.rows, layers=settings.layers)
    crystal = relax_fcc(model.experts[1], model.params[1], demo.METAL)
    system = demo.build(model, shape, crystal.lattice_constant, np.dtype(settings.dtype))
    _say(f"{len(system.atoms)} atoms, {settings.dtype}; compiling three programs")
    rng = np.random.default_rng(settings.seed)
    position = system.position + 0.05 * rng.standard_normal(system.position.shape)
    velocity = np.zeros_like(position)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cheap expert meets C and O: only its time is wanted
        cases = demo.steppers(model, system, settings.timestep_fs, settings.chunk_size)
        timings = demo.interleave(cases, system, position, velocity, settings.rounds)
    _say("\n".join(demo.timing_lines(timings)))
    _say(
        f"f = {timings.f:.3f}, r = {timings.r:.1f}: speed-up {timings.speedup:.2f} of at most {timings.s_max:.2f}, "
        f"{timings.speedup / timings.s_max:.0%}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": asdict(settings),
        "n_atoms": len(system.atoms),
        "f": timings.f,
        "r": timings.r,
        "speedup": timings.speedup,
        "s_max": timings.s_max,
        "fraction_of_bound": timings.speedup / timings.s_max,
        "seconds": {name: getattr(timings, name)._asdict() for name in ("expensive", "mixed", "cheap")},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    _write_json(folder / "bench.json", record)
    _say(f"wrote {folder / 'bench.json'}")


def _structure(path: str) -> Atoms:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"structure must be an existing file, got {path}.")
    if any(suffix in (".xyz", ".extxyz") for suffix in file.suffixes):
        read_frames(file)  # notices files that were cut short
    try:
        return ase.io.read(file, index=-1)
    except Exception as error:  # ASE raises many types
        raise ValueError(f"structure must be a file that ASE reads, got {path}: {error}.") from None


def _in_a_box(atoms: Atoms, cutoff: float) -> Atoms:
    """A periodic box; along open directions wide enough that images do not meet."""
    if atoms.pbc.all():
        return atoms
    boxed = atoms.copy()
    cell = atoms.cell.complete()
    across = 1 / np.linalg.norm(np.linalg.inv(cell.array), axis=0)  # distances between faces
    scaled = cell.scaled_positions(atoms.positions)
    span = np.ptp(scaled, axis=0) * across
    wanted = np.maximum(span + cutoff + 5.0, 2 * cutoff + 1.0)
    stretch = np.where(atoms.pbc, 1.0, np.maximum(wanted / across, 1.0))
    center = np.where(atoms.pbc, 0.0, 0.5 * stretch - 0.5 * (scaled.min(0) + scaled.max(0)))
    boxed.set_cell(cell.array * stretch[:, None])
    outside = (scaled + center < 0) | (scaled + center > stretch)
    # Atoms stay where they are, so that planes given in Å keep their meaning, unless they would not fit.
    keep = (scaled.min(0) >= 0) & (scaled.max(0) <= stretch)
    shift = np.where(keep | atoms.pbc, 0.0, center)
    assert not (outside & ~keep & ~atoms.pbc).any()
    boxed.positions += shift @ cell.array
    boxed.pbc = True
    return boxed


def _region(settings: Run | export.Settings, atoms: Atoms, n_experts: int) -> regions.Region:
    if settings.region_around:
        symbols = [symbol.strip() for symbol in settings.region_around.split(",")]
        seeds = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), symbols))
        if len(seeds) == 0:
            raise ValueError(f"region_around must name species of the structure, got {settings.region_around!r}.")
        return regions.around(seeds, settings.region_core, settings.region_blend)
    if settings.region_lower is None and settings.region_upper is None:
        if "expert" in atoms.arrays:
            return regions.fixed(atoms.arrays["expert"].astype(int), n_experts)
        raise ValueError(
            "region_lower or region_upper (Å) or region_around (species) must be given, or the structure must have a "
            "column `expert` of integers."
        )
    lower = -np.inf if settings.region_lower is None else settings.region_lower
    upper = np.inf if settings.region_upper is None else settings.region_upper
    return regions.slab(atoms.positions, lower=lower, upper=upper, axis=settings.region_axis, n_experts=n_experts)


def _dataset(parsed, species=None) -> Dataset:
    keys = asdict(_settings(Data, "data", parsed))
    file = keys.pop("file")
    return load_dataset(PACKAGED[file]() if file in PACKAGED else file, species, **keys)


def _part(dataset: Dataset, model: checkpoints.Checkpoint, split: str, fraction: float | None) -> Dataset:
    """The frames of a split, made as training made it."""
    if split == "all":
        return dataset
    fraction = model.settings.get("validation_fraction") if fraction is None else fraction
    if not fraction:
        raise ValueError(
            "validation_fraction must be given for a split: the checkpoint does not say how its data were split."
        )
    seed = model.settings.get("split_seed", model.settings.get("seed", 0))
    train, validation = split_by_group(dataset, validation_fraction=fraction, seed=seed)
    return {"train": train, "validation": validation}[split]


def _counts(name: str, dataset: Dataset) -> str:
    counts = summary(dataset)
    return f"{name}: {counts['frames']} frames of {counts['groups']} groups, {counts['atoms']} atoms"


def _experts(tables: dict, dataset: Dataset, metal: str, file) -> tuple:
    """The two experts of a settings file; what it leaves out is filled in."""
    species = [metal, *(s for s in dataset.species if s != metal)]
    defaults = {
        "expensive": {"builder": "allegro", "species": species, "cutoff": 5.0},
        "cheap": {"builder": "power_spectrum", "species": species, "cutoff": 5.0, "l_max": 4, "domain": [metal]},
    }
    made = []
    for name, default in defaults.items():
        table = tables.get(name)
        config = default if table is None else {**{k: default[k] for k in ("builder", "species", "cutoff")}, **table}
        builder = config["builder"]
        if not isinstance(builder, str) or builder not in experts.BUILDERS:
            raise ValueError(f"builder of [{name}] of {file} must be one of {sorted(experts.BUILDERS)}, got {builder!r}.")
        allowed = ("builder", *inspect.signature(experts.BUILDERS[builder]).parameters)
        _check_keys(config, allowed, f"[{name}] of {file}")
        made.append(experts.build(config))
    return tuple(made)


def _tables(file) -> dict:
    """The tables of a settings file, `{}` for none."""
    if file is None:
        return {}
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"settings must be an existing TOML file, got {file}.")
    try:
        tables = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"settings must be a TOML file, got {file}: {error}.") from None
    _check_keys(tables, ("start", *TABLES), str(file))
    if not isinstance(tables.get("start", ""), str):
        raise ValueError(f"start of {file} must be the name or path of a checkpoint, got {tables['start']!r:.80}.")
    for name, table in tables.items():
        if name != "start" and not isinstance(table, dict):
            raise ValueError(f"{name} of {file} must be a table, [{name}], got {table!r}.")
    return tables


def _settings(cls, name: str, parsed):
    """A settings dataclass: defaults, then the file's table, then options."""
    table = _tables(parsed.settings).get(name, {})
    options = {f.name: getattr(parsed, f.name) for f in fields(cls) if getattr(parsed, f.name, None) is not None}
    return _filled(cls, table, f"[{name}] of {parsed.settings}", options)


def _filled(cls, table: dict, where: str, options: dict | None = None):
    _check_keys(table, [f.name for f in fields(cls)], where)
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{key} in {where} must be a table, got {value!r}.")
            values[key] = _filled(hints[key], value, f"[{key}] in {where}")
        else:
            values[key] = value
    try:
        return cls(**{**values, **(options or {})})
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if table else str(error)) from error


def _check_keys(table: dict, allowed, where: str) -> None:
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise ValueError(f"unknown key {', '.join(map(repr, unknown))} in {where}: allowed are {', '.join(allowed)}.")


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


def _devices(wanted: str | None) -> list | None:
    """Those that `--devices` asks for."""
    if wanted is None:
        return None
    found = jax.devices()
    if wanted == "all":
        return found
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(found):
        raise ValueError(f"devices must be 'all' or a number from 1 to the {len(found)} that jax finds, got {wanted!r}.")
    return found[: int(wanted)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moe-md", description="Molecular dynamics with several potentials and one energy.")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="demo | train | evaluate | validate | run | export | bench")

    def command(name: str, fn, out: str, text: str, settings_class=None):
        sub = commands.add_parser(name, help=text, description=text + ".")
        sub.set_defaults(command=fn)
        sub.add_argument("--out", default=out, metavar="DIR", help=f"folder of the results (default {out})")
        sub.add_argument("--settings", metavar="FILE", help="TOML file; options override it")
        for item in fields(settings_class) if settings_class else ():
            kind = kind_of(typing.get_type_hints(settings_class)[item.name])
            if kind in (int, float, str):
                default = [] if item.default in (None, "") else [f"default {item.default}"]
                text = "; ".join(_comment(settings_class, item.name) + default).replace("%", "%%")
                sub.add_argument(f"--{item.name.replace('_', '-')}", type=kind, help=text, metavar=kind.__name__)
        return sub

    sub = command("demo", run_demo, "demo", "Run a CO-covered Pt(111) slab under two experts and report on it", demo.Settings)
    sub.add_argument("--small", action="store_true", help="a small slab and few steps, for tests")

    sub = command("train", run_train, "training", "Train an expensive and a cheap expert together; resumes where it stopped", cotrain.Settings)
    _data_options(sub)
    sub.add_argument("--validation-fraction", type=float, default=0.15, help="share of frames held out by group; 0 for none (default 0.15)")
    sub.add_argument("--start", metavar="CHECKPOINT", help="name or path: begin with its parameters, and its experts unless settings name others; in a settings file a line of its own, on top")
    sub.add_argument("--devices", metavar="N", help="share the rows of each batch among N devices, or all (default one); it may change when a training goes on")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = command("evaluate", run_evaluate, "evaluation", "Errors of a checkpoint on labelled frames")
    sub.add_argument("checkpoint", help="name or path")
    _data_options(sub)
    sub.add_argument("--split", choices=("train", "validation", "all"), default="all", help="which frames (default all)")
    sub.add_argument("--validation-fraction", type=float, help="of the split; default what training used")

    sub = command(
        "validate", run_validate, "validation", "Errors, properties, seam and dynamics of a checkpoint, as a report", validate.Settings
    )
    sub.add_argument("checkpoint", help="name or path")
    _data_options(sub)
    sub.add_argument(
        "--split",
        choices=("train", "validation", "all"),
        help="which frames (default validation for the packaged frames where the checkpoint says how it was split, else all)",
    )
    sub.add_argument("--validation-fraction", type=float, help="of the split; default what training used")
    sub.add_argument("--small", action="store_true", help="few steps of dynamics, for tests")

    command("run", run_dynamics, "run", "Molecular dynamics of a structure", Run)
    sub = command("export", run_export, "exported", "Write a folder that runs a structure in another program", export.Settings)
    sub.add_argument("program", choices=("lammps",), help="that runs it")
    command("bench", run_bench, "bench", "Time a mixture against either expert alone, on a slab", Bench)
    return parser


def _comment(cls, name: str) -> list[str]:
    """What the source says beside a field: said once, shown by --help."""
    return re.findall(rf"^    {name}: .*?  # (.*)$", inspect.getsource(cls), re.MULTILINE)[:1]


def _data_options(sub) -> None:
    sub.add_argument("--data", dest="file", metavar="FILE", help=f"extended XYZ, or packaged frames: {', '.join(PACKAGED)} (default {DATA})")
    for name in ("energy_key", "forces_key", "stress_key", "group_key", "kind_key"):
        default = next(f.default for f in fields(Data) if f.name == name)
        (text,) = _comment(Data, name)
        sub.add_argument(f"--{name.replace('_', '-')}", metavar="NAME", help=text + (f" (default {default})" if default else ""))


def _quieten() -> None:
    # XLA calls its own programs, kept on this very machine, a mismatch of machines (jax issue 38445).
    if jax.config.jax_logging_level in (None, "NOTSET"):
        jax.config.update("jax_logging_level", "CRITICAL")
    warnings.showwarning = lambda message, *_, **__: print(f"moe-md: warning: {message}", file=sys.stderr)
    # jax-md mixes integer types where 64 bits are on.
    warnings.filterwarnings("ignore", message="scatter inputs have incompatible types", category=FutureWarning)


def _keep_compiled_programs() -> None:
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "moe_md" / "jax"))


def _say(text: str) -> None:
    print(text, flush=True)


def _write_json(path: Path, content: dict) -> None:
    checkpoints.write_atomic(path, (json.dumps(content, indent=2, default=_plain) + "\n").encode())


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)


if __name__ == "__main__":
    sys.exit(main())
