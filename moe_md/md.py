"""Molecular dynamics of a structure from a file: `moe-md run`."""

import contextlib
import hashlib
import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Callable

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax_md import space

from moe_md import checkpoint as checkpoints
from moe_md import regions, simulate
from moe_md.analysis.blending import BlendWatch
from moe_md.analysis.h5md import H5MDWriter
from moe_md.analysis.restart import Restart, load_restart
from moe_md.analysis.trajectory import LastState, LogWriter, XYZWriter, drift
from moe_md.data import read_frames
from moe_md.interfaces import selections
from moe_md.mixture import mixture_neighbor_list
from moe_md.settings import check_fields


@dataclass(frozen=True)
class Settings:
    """Molecular dynamics; keys of the `[run]` table of a settings file."""

    checkpoint: str = "ptco"  # name or path
    structure: str = ""  # any file that ASE reads; its last frame, with its velocities if it has any
    region_lower: float | None = None  # Å: atoms above go to the expensive expert
    region_upper: float | None = None  # Å: atoms below go to the expensive expert
    region_axis: int = 2  # normal of those planes: 0, 1 or 2
    region_around: str = ""  # chemical symbols, as C,O: the expensive expert follows these atoms
    region_core: float = 6.0  # Å around them that are all the expensive expert's
    region_blend: float = 2.0  # Å beyond, in which both share an atom
    region_layers: int = 0  # so many layers on top go to the expensive expert, for good
    region_tags: str = ""  # ASE's tags, as 1,2: their atoms go to the expensive expert, for good
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
        for name in ("steps", "relax_steps", "seed", "temperature_K", "region_layers"):
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
        planes = not (self.region_lower is None and self.region_upper is None)
        ways = {"region_lower or region_upper": planes, "region_around": self.region_around, "region_layers": self.region_layers, "region_tags": self.region_tags}
        given = [name for name, way in ways.items() if way]
        if len(given) > 1:
            raise ValueError(f"a region must be chosen in one way, got {' and '.join(given)}.")


def run(settings: Settings, folder, say: Callable = print) -> dict:
    """Molecular dynamics of a structure; a run in a folder that holds one goes on where that stopped.

    Args:
        settings: what, how and how long.
        folder: for log, trajectory, restart, the last frame and `run.json`.
        say: takes lines of text.

    Returns:
        What `run.json` holds.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another.
        SimulationError: the run blew up; the last good state is saved.
    """
    with jax.enable_x64(True) if settings.dtype == "float64" else contextlib.nullcontext():
        return _run(settings, Path(folder), say)


def _run(settings: Settings, folder: Path, say: Callable) -> dict:
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
    steps = partial(simulate.run, neighbor_fn, energy_fn, integrator, chunk_steps=settings.log_every)
    begin = {"masses": atoms.get_masses(), "key": jax.random.key(settings.seed), "box": box if breathes else None}
    position = jnp.asarray(atoms.get_scaled_positions() if breathes else atoms.get_positions(wrap=True), dtype)

    folder.mkdir(parents=True, exist_ok=True)
    restart, cut = folder / "restart.msgpack", {}
    fingerprint = {k: v for k, v in asdict(settings).items() if k != "steps"}
    trees = model.params if guide is None else (*model.params, guide[1])
    fingerprint |= {"experts": [e.config for e in potentials], "digest": _digest(trees, atoms)}
    if restart.exists():
        like = steps(position, n_steps=0, temperature_K=0.0, **begin)
        state, neighbors = load_restart(restart, like.state, like.neighbors, fingerprint)
        cut = {"append": True, "until_step": state.step}
        begin = {"state": state, "neighbors": neighbors}
        n_steps = max(0, settings.steps - state.step)
        say(f"taking up the run in {folder} at step {state.step}")
    else:
        neighbors, n_steps = neighbor_fn.allocate(position), settings.steps
        if settings.relax_steps:
            relaxed = simulate.relax(
                neighbor_fn, energy_fn, shift_fn, position, n_steps=settings.relax_steps, box=begin["box"], neighbors=neighbors
            )
            position, neighbors = relaxed.position, relaxed.neighbors
            say(f"relaxed to {relaxed.energy:.4f} eV in {relaxed.n_steps} steps, largest force {relaxed.max_force:.3f} eV/Å")
        moving = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0 and not settings.relax_steps
        speed = {"velocity": atoms.get_velocities()} if moving else {"temperature_K": settings.temperature_K}
        begin |= {"position": position, "neighbors": neighbors, **speed}
    share = float(np.mean(np.asarray(region.gate(position, displacement_fn))[:, 0] > 0))
    say(f"{n_atoms} atoms, {share:.1%} on the expensive expert, {settings.dtype}")

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

    def tell(frame: simulate.Frame) -> None:
        if frame.step % max(settings.log_every, settings.steps // 10 // settings.log_every * settings.log_every) == 0:
            say(f"step {frame.step:7d}  {frame.time_ps:8.3f} ps  {frame.temperature_K:6.0f} K  {frame.total:.5f} eV")

    started = time.perf_counter()
    try:
        result = steps(n_steps=n_steps, reporters=[report, tell, *([watch] if region.moves else []), keeper, LastState(folder / "last_good.npz")], **begin)
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
        say(f"drift {slope.slope:+.5f} ± {slope.standard_error:.5f} meV/atom/ps")
    if region.moves and n_steps:
        record["blend"] = blend = watch.summary()
        if "gate_over_thermal" in blend:
            _, least, most = blend["share"][0]
            say(f"{least:.1%} to {most:.1%} of the atoms on the expensive expert; the gate's force is {blend['gate_over_thermal']:.2%} of all force in the blend")
    checkpoints.write_json(folder / "run.json", record)
    say(f"{n_steps} steps in {seconds:.1f} s, compilation included; wrote {folder / 'log.csv'}")
    return record


def _digest(params, atoms: Atoms) -> str:
    """Of what a run starts from: another one must not be taken for it."""
    arrays = [*jax.tree.leaves(params), atoms.positions, atoms.cell.array, atoms.numbers, atoms.get_momenta()]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays)).hexdigest()


def _integrator(settings: Settings, shift_fn) -> simulate.Integrator:
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


def _region(settings: Settings, atoms: Atoms, n_experts: int) -> regions.Region:
    if settings.region_around:
        symbols = [symbol.strip() for symbol in settings.region_around.split(",")]
        seeds = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), symbols))
        if len(seeds) == 0:
            raise ValueError(f"region_around must name species of the structure, got {settings.region_around!r}.")
        return regions.around(seeds, settings.region_core, settings.region_blend)
    if settings.region_layers:
        return regions.fixed(selections.by_layer(settings.region_layers, settings.region_axis)(atoms), n_experts)
    if settings.region_tags:
        return regions.fixed(selections.by_tag(_whole_numbers("region_tags", settings.region_tags))(atoms), n_experts)
    if settings.region_lower is None and settings.region_upper is None:
        if "expert" in atoms.arrays:
            return regions.fixed(atoms.arrays["expert"].astype(int), n_experts)
        raise ValueError(
            "region_lower or region_upper (Å), region_around (species), region_layers or region_tags must be given, or the "
            "structure must have a column `expert` of integers."
        )
    lower = -np.inf if settings.region_lower is None else settings.region_lower
    upper = np.inf if settings.region_upper is None else settings.region_upper
    return regions.slab(atoms.positions, lower=lower, upper=upper, axis=settings.region_axis, n_experts=n_experts)


def _whole_numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r:.80}.")
    return [int(part) for part in parts]
