"""The demonstration: a CO-covered Pt(111) slab under two experts.

Builds the slab, relaxes it, brings it to temperature, runs at constant energy,
times the mixture against either expert alone, compares forces, and writes down
what came out, in numbers, pictures and words.

    f      share of atoms on the expensive expert
    r      cost of the expensive expert over that of the cheap one, per atom
    S_max  1 / (f + (1 - f) / r), the most that any mixture can gain
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from moe_md import checkpoint as checkpoints
from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate, units
from moe_md.analysis import expert_boundary
from moe_md.analysis.bulk import relax_fcc
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.reading import frame_from_atoms
from moe_md.data.structures import co_covered_slab
from moe_md.mixture.energy import mixture_neighbor_list
from moe_md.neighbors.rows import image_pairs
from moe_md.plots import plots
from moe_md.reporters.trajectory import LogWriter, XYZWriter, drift
from moe_md.settings import DemoSettings
from moe_md.timing import SKIN, System, interleave, steppers, timing_lines

METAL = "Pt"
MARGIN = 0.6  # Å, room for atoms to move before the cheap expert sees C or O
HOP = 1.3  # Å, half way to the next site: a metal atom that went further left its own
SUMMARY_KEYS = (
    *("n_atoms", "f", "r", "speedup", "s_max", "fraction_of_bound"),
    *("drift_meV_per_atom_per_ps", "drift_stderr", "force_rmse", "ghost_force"),
)


def small(settings: DemoSettings) -> DemoSettings:
    """The same in seconds: fewer layers and steps. For tests."""
    return replace(
        settings,
        columns=4,
        rows=8,
        layers=8,
        relax_steps=5,
        equilibration_steps=10,
        production_steps=40,
        log_every=2,
        trajectory_every=10,
        snapshots=2,
        timing_rounds=2,
    )


def lower_plane(atoms: Atoms, cutoff: float, margin: float = MARGIN) -> float:
    """Height between two layers above which every atom goes to the expensive expert.

    Args:
        atoms: from `co_covered_slab`.
        cutoff: Å, of the cheap expert.
        margin: Å, added to it.

    Returns:
        Å. Below the plane no atom has C or O within `cutoff + margin`.

    Raises:
        ValueError: that would take every layer.
    """
    tags, is_metal = atoms.get_tags(), np.array(atoms.symbols) == METAL
    i, j, _ = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff + margin)
    seen = tags[i[is_metal[i] & ~is_metal[j]]]
    deepest = int(seen.max(initial=1))
    if deepest >= tags.max():
        raise ValueError(
            f"layers must be more than {deepest}, all of which see CO within {cutoff + margin:.2f} Å, got"
            f" {tags.max()}."
        )
    heights = [atoms.positions[tags == layer, 2].mean() for layer in (deepest, deepest + 1)]
    return float(np.mean(heights))


def build(model: Checkpoint, settings: DemoSettings, lattice_constant: float, dtype=np.float32) -> System:
    """The slab of the demonstration and its region.

    Args:
        model: two experts that know Pt, C and O.
        settings: size of the slab.
        lattice_constant: Å.
        dtype: of positions and box.

    Returns:
        The system: CO and the layers near it on the expensive expert.

    Raises:
        ValueError: the checkpoint has not two experts, or does not know a species.
    """
    check_experts(model)
    atoms = co_covered_slab(
        METAL, lattice_constant, settings.columns, settings.rows, settings.layers, vacuum=settings.vacuum
    )
    species = np.array([model.experts[0].species.index(s) for s in atoms.symbols], np.int32)
    region = regions.slab(atoms.positions, lower=lower_plane(atoms, model.experts[1].cutoff))
    return System(atoms, atoms.positions.astype(dtype), atoms.cell.lengths().astype(dtype), species, region)


def check_experts(model: Checkpoint) -> None:
    """Raise a ValueError unless the checkpoint holds two experts that know Pt, C and O."""
    if len(model.experts) != 2:
        raise ValueError(f"checkpoint must hold two experts, got {len(model.experts)}.")
    missing = [s for s in (METAL, "C", "O") if s not in model.experts[0].species]
    if missing:
        raise ValueError(f"checkpoint must know Pt, C and O, got species {model.experts[0].species}.")


def run(settings: DemoSettings, folder, say: Callable[[str], None] = print) -> dict:
    """The whole demonstration.

    Args:
        settings: see `DemoSettings`.
        folder: where everything is written; made if it is not there.
        say: told about each stage.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: the checkpoint does not fit.
        SimulationError: the dynamics failed.
    """
    folder = Path(folder)
    begun = time.perf_counter()

    def stage(text: str) -> None:
        say(f"[{time.perf_counter() - begun:5.0f} s] {text}")

    model = checkpoints.load(settings.checkpoint)
    check_experts(model)
    folder.mkdir(parents=True, exist_ok=True)
    crystal = relax_fcc(model.experts[1], model.params[1], METAL)
    stage(
        f"lattice constant {crystal.lattice_constant:.3f} Å, bulk modulus {crystal.bulk_modulus_GPa:.0f} GPa"
        " (cheap expert)"
    )

    system = build(model, settings, crystal.lattice_constant)
    n_atoms, n_expensive = len(system.atoms), int(np.sum(system.assignment == 0))
    edges = " x ".join(f"{edge:.1f}" for edge in system.box)
    stage(
        f"{n_atoms} atoms in {edges} Å, {n_expensive} of them ({n_expensive / n_atoms:.1%}) on the expensive"
        " expert"
    )

    displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(system.box))
    neighbor_fn, atom_energy_fn = mixture_neighbor_list(
        displacement_fn,
        system.box,
        model.potentials,
        system.species,
        system.region,
        dr_threshold=SKIN,
        per_particle=True,
        chunk_size=settings.chunk_size,
    )
    start = jnp.asarray(system.position)
    neighbors = neighbor_fn.allocate(start)
    # Counted from here: a total of -12,000 eV has steps of 1 meV in float32, a difference has not.
    reference = jax.jit(atom_energy_fn)(start, neighbors)
    zero_eV = float(np.sum(np.asarray(reference, float)))

    def energy_fn(R, neighbor, **kwargs):
        return jnp.sum(atom_energy_fn(R, neighbor, **kwargs) - reference)

    relaxed = simulate.relax(
        neighbor_fn,
        energy_fn,
        shift_fn,
        start,
        n_steps=settings.relax_steps,
        neighbors=neighbors,
        chunk_steps=10,
    )
    stage(
        f"relaxed by {1e3 * relaxed.energy / n_atoms:.2f} meV/atom in {relaxed.n_steps} steps, largest force"
        f" {relaxed.max_force:.2f} eV/Å"
    )

    # Half of the kinetic energy flows into vibration: twice the temperature to start with.
    thermostat = simulate.langevin(
        shift_fn, settings.timestep_fs, settings.temperature_K, friction_per_fs=0.02
    )
    warm = simulate.run(
        neighbor_fn,
        energy_fn,
        thermostat,
        relaxed.position,
        masses=system.atoms.get_masses(),
        temperature_K=2 * settings.temperature_K,
        key=jax.random.key(settings.seed),
        n_steps=settings.equilibration_steps,
        chunk_steps=settings.log_every,
        neighbors=relaxed.neighbors,
    )
    stage(f"equilibrated for {warm.state.time_ps:.2f} ps, now at {warm.log.temperature_K[-1]:.0f} K")

    log_file = LogWriter(folder / "log.csv")
    trajectory = XYZWriter(
        folder / "trajectory.extxyz",
        system.atoms.get_chemical_symbols(),
        system.box,
        True,
        expert=system.assignment,
    )
    snapshots: list[simulate.Frame] = []

    def report(frame: simulate.Frame) -> None:
        energies = {name: getattr(frame, name) + zero_eV for name in ("potential", "total", "conserved")}
        whole = frame._replace(**energies)
        log_file(whole)
        if frame.step % settings.trajectory_every == 0:
            trajectory(whole)
            snapshots.append(frame)

    clock = time.perf_counter()
    result = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, settings.timestep_fs),
        warm.state.position,
        masses=system.atoms.get_masses(),
        velocity=warm.state.velocity,
        n_steps=settings.production_steps,
        chunk_steps=settings.log_every,
        neighbors=warm.neighbors,
        reporters=[report],
    )
    production_seconds = time.perf_counter() - clock
    log_file.close()
    trajectory.close()
    slope = drift(result.log.time_ps, result.log.total, n_atoms)
    stage(
        f"constant energy for {result.state.time_ps:.2f} ps: drift {slope.slope:+.4f} ±"
        f" {slope.standard_error:.4f} meV/atom/ps"
    )

    cases = steppers(model, system, settings.timestep_fs, settings.chunk_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cheap expert meets C and O: only its time is wanted
        timings = interleave(
            cases, system, result.state.position, result.state.velocity, settings.timing_rounds
        )
    stage(f"speed-up {timings.speedup:.2f} of at most {timings.s_max:.2f}")

    chosen = [
        snapshots[k]
        for k in np.unique(np.linspace(1, len(snapshots) - 1, settings.snapshots).round().astype(int))
    ]
    exact = np.array([cases["expensive"].forces(frame.position) for frame in chosen], float)
    difference = np.array([frame.force for frame in chosen], float) - exact
    force_rms = _rms(exact)
    force_rmse = _rms(difference)
    stage(
        f"forces differ from the expensive expert's by {1e3 * force_rmse:.1f} meV/Å on {len(chosen)}"
        " snapshots"
    )

    # Unwrapped: every atom beside where it started.
    final = system.atoms.copy()
    moved = np.asarray(result.state.position, float) - final.positions
    moved -= system.box * np.round(moved / system.box)
    final.positions += moved
    rows = frame_rows(
        frame_from_atoms(final),
        model.experts[0].species,
        max(e.cutoff for e in model.experts),
        dtype=system.position.dtype,
    )
    mismatch = expert_boundary.mismatch(model.experts, model.params, rows)
    ghost = expert_boundary.ghost_force_report(
        model, [s * crystal.lattice_constant for s in (0.98, 1.0, 1.02)], symbol=METAL
    )
    ghost_relaxed = max(ghost[name]["max"][1] for name in ("100", "111", "sphere"))
    stage(f"ghost force of a seam through a perfect crystal: at most {ghost_relaxed:.1f} meV/Å")

    _draw(folder, final, system, result, slope, n_atoms, mismatch)
    summary = {
        "n_atoms": n_atoms,
        "f": timings.f,
        "r": timings.r,
        "speedup": timings.speedup,
        "s_max": timings.s_max,
        "fraction_of_bound": timings.speedup / timings.s_max,
        "drift_meV_per_atom_per_ps": slope.slope,
        "drift_stderr": slope.standard_error,
        "force_rmse": 1e3 * force_rmse,
        "ghost_force": ghost_relaxed,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    by_owner = [(name, _rms(exact[:, own]), _rms(difference[:, own])) for name, own in _owners(system)]
    facts = {
        "production_seconds": production_seconds,
        "total_seconds": time.perf_counter() - begun,
        "lattice_constant": crystal.lattice_constant,
        "temperature_K": float(result.log.temperature_K.mean()),
        "time_ps": result.state.time_ps,
        "n_reallocations": int(result.log.n_reallocations[-1]),
        "force_rms": force_rms,
        "n_snapshots": len(chosen),
        "plane": lower_plane(system.atoms, model.experts[1].cutoff),
        "n_hopped": int(np.sum((np.linalg.norm(moved, axis=1) > HOP) & (np.array(final.symbols) == METAL))),
    }
    (folder / "report.md").write_text(
        _report(settings, model, system, summary, timings, ghost, mismatch, by_owner, facts)
    )
    stage(f"wrote {folder / 'report.md'}")
    return summary


def _owners(system: System):
    owner = system.assignment
    return (("expensive", owner == 0), ("cheap", owner == 1))


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _draw(
    folder: Path,
    final: Atoms,
    system: System,
    result,
    slope,
    n_atoms: int,
    mismatch: expert_boundary.Mismatch,
) -> None:
    symbols = final.get_chemical_symbols()
    plots.slab_view(final.positions, symbols, system.assignment).savefig(folder / "slab.png", dpi=150)
    log = result.log
    plots.energy_over_time(
        log.time_ps,
        log.total / n_atoms,
        log.kinetic / n_atoms,
        log.potential / n_atoms,
        drift=1e-3 * slope.slope,
        drift_stderr=1e-3 * slope.standard_error,
    ).savefig(folder / "energy.png", dpi=150)
    height = final.positions[:, 2]
    inside = height[system.assignment == 0]
    plots.mismatch_over_height(
        height,
        mismatch.energy,
        mismatch.partial_force,
        mismatch.in_domain,
        region=(inside.min(), inside.max()),
    ).savefig(folder / "mismatch.png", dpi=150)


def _report(settings, model, system, summary, timings, ghost, mismatch, by_owner, facts) -> str:
    n_expensive = int(np.sum(system.assignment == 0))
    edges = " × ".join(f"{edge:.1f}" for edge in system.box)
    per_day = 86400 / (facts["production_seconds"] / settings.production_steps) * settings.timestep_fs * 1e-6
    known = mismatch.in_domain
    drift_is_zero = abs(summary["drift_meV_per_atom_per_ps"]) < 2 * summary["drift_stderr"]
    kelvin_per_ns = summary["drift_meV_per_atom_per_ps"] / (
        3 * units.kB
    )  # 3 kB T per atom, half of it kinetic
    hopped = []
    if facts["n_hopped"] and settings.temperature_K <= 1000:  # hotter, atoms may well move
        hopped = [
            (
                f"{facts['n_hopped']} Pt atoms are more than {HOP} Å from where the slab was built. Platinum"
                f" at {settings.temperature_K:g} K does not do that in so short a time: it is a weakness of"
                " the checkpoint on surfaces, which energy conservation does not show."
            ),
            "",
        ]
    names = [e.config["builder"] for e in model.experts]
    device = jax.devices()[0]
    forces = [f"| {name} | {1e3 * size:.0f} | {1e3 * change:.1f} |" for name, size, change in by_owner]
    ghosts = [
        f"| {label} | "
        + " | ".join(f"{ghost[key]['max'][k]:.1f} ({ghost[key]['rms'][k]:.1f})" for k in range(3))
        + " |"
        for key, label in (("100", "plane (100)"), ("111", "plane (111)"), ("sphere", "sphere"))
    ]
    return "\n".join(
        [
            "# One energy, two experts",
            "",
            (
                f"CO on Pt(111): {summary['n_atoms']} atoms in {edges} Å, {settings.layers} layers of Pt, a"
                f" quarter layer of CO. The expensive expert ({names[0]}) owns {n_expensive} atoms"
                f" ({summary['f']:.1%}), the CO and the Pt above z = {facts['plane']:.1f} Å; the cheap one"
                f" ({names[1]}) the rest. Below that plane no Pt atom had C or O within the cheap expert's"
                f" cutoff, {model.experts[1].cutoff} Å, plus {MARGIN} Å. Each atom keeps its expert. Float32,"
                f" checkpoint `{Path(settings.checkpoint).stem}`, lattice constant"
                f" {facts['lattice_constant']:.3f} Å (the cheap expert's own)."
            ),
            "",
            "![The slab from the side](slab.png)",
            "",
            "## How fast",
            "",
            *timing_lines(timings),
            "",
            (
                f"With f = {summary['f']:.3f} of the atoms on the expensive expert and r = {summary['r']:.1f}"
                " times its cost per atom, the bound is S_max = 1 / (f + (1 − f)/r) ="
                f" {summary['s_max']:.2f}. This one is {summary['speedup']:.2f} times faster than the"
                f" expensive expert alone, {summary['fraction_of_bound']:.0%} of the bound. S_max takes all"
                " atoms to cost the same, and is made of the same timings; CO and the surface have fewer"
                " neighbours than the crystal, so somewhat more than 100% is possible."
            ),
            "",
            (
                "A step is velocity Verlet with the check of its neighbour list, timed in turn over"
                f" {settings.timing_rounds} rounds on {device.device_kind} ({device.platform}, jax"
                f" {jax.__version__}); rebuilding the list every 20 steps or so is not in it. The whole"
                " production run, rebuilds and files included, took"
                f" {1e3 * facts['production_seconds'] / settings.production_steps:.1f} ms per step"
                f" ({per_day:.2f} ns per day). The cheap expert was not made for C and O: the last row is a"
                " time, its dynamics would be wrong."
            ),
            "",
            "## Is energy conserved",
            "",
            "![Energy against time](energy.png)",
            "",
            f"{facts['time_ps']:.2f} ps at constant energy, {settings.timestep_fs:g} fs steps,"
            f" {facts['temperature_K']:.0f} K on average: the total energy drifts by"
            f" {summary['drift_meV_per_atom_per_ps']:+.4f} ± {summary['drift_stderr']:.4f} meV/atom/ps (one"
            " standard error), "
            + (
                "which is zero within twice its error"
                if drift_is_zero
                else "which is more than twice its error"
            )
            + f". At this rate the slab would change its temperature by {abs(kelvin_per_ns):.1f} K in a"
            f" nanosecond. Neighbour lists were enlarged {facts['n_reallocations']} times.",
            "",
            *hopped,
            "",
            "## What the cheap expert changes",
            "",
            (
                "Forces of the mixture against those of the expensive expert on every atom, on"
                f" {facts['n_snapshots']} snapshots of this run, root mean square per component:"
                f" {summary['force_rmse']:.1f} meV/Å, of forces that measure {1e3 * facts['force_rms']:.0f}"
                " meV/Å."
            ),
            "",
            "| atoms of the | size of forces, meV/Å | difference, meV/Å |",
            "| --- | ---: | ---: |",
            *(
                line.replace("| expensive", "| expensive expert").replace("| cheap", "| cheap expert")
                for line in forces
            ),
            "",
            (
                "This says how well the two experts agree, not how well either agrees with density functional"
                " theory; the checkpoint's validation errors say that."
            ),
            "",
            "![Mismatch against height](mismatch.png)",
            "",
            (
                f"The experts side by side on each atom of the last frame. Over the {int(known.sum())} atoms"
                f" that see no C or O, the root mean square is {1e3 * _rms(mismatch.energy[known]):.2f} meV"
                f" in energy and {1e3 * _rms(mismatch.partial_force[known]):.1f} meV/Å in partial forces."
                " Above, where molecules are near, they were never asked to agree."
            ),
            "",
            "## The seam alone",
            "",
            (
                "In a perfect crystal every force is zero. Cut in two, each part given its expert, what is"
                " left is an artefact of the seam, the ghost force: the largest (and the root mean square"
                " near the seam), meV/Å."
            ),
            "",
            "| lattice constant | −2 % | relaxed | +2 % |",
            "| --- | ---: | ---: | ---: |",
            *ghosts,
            "",
            "## Files",
            "",
            (
                "`summary.json` (force_rmse and ghost_force in meV/Å), `log.csv`, `trajectory.extxyz`"
                f" (column `expert`), and the pictures. The run took {facts['total_seconds']:.0f} s,"
                " compilation included."
            ),
            "",
        ]
    )
