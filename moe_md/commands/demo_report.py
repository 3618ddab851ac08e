"""Report and pictures of the demonstration: `report.md`, `slab.png`, `energy.png`, `mismatch.png`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Float

from moe_md import simulate, units
from moe_md.analysis.expert_boundary import Mismatch
from moe_md.experts.base import Expert
from moe_md.plots import plots
from moe_md.reporters.trajectory import Drift
from moe_md.settings import DemoSettings
from moe_md.timing import System, Timings, timing_lines

MAX_HOP_TEMPERATURE_K = 1000.0  # above, atoms of Pt may leave their sites

TEMPLATE = """\
# One energy, two experts

CO on Pt(111): {n_atoms} atoms in {edges} Å, {layers} layers of Pt, a quarter layer of CO. The expensive
expert ({expensive}) owns {n_expensive} atoms ({f:.1%}): the CO, and the Pt above z = {plane:.1f} Å. The cheap
expert ({cheap}) owns the others. At the start, no Pt atom below that plane has C or O within {cutoff} Å, the
cutoff of the cheap expert, plus {margin} Å. Each atom keeps its expert. Float32, checkpoint `{checkpoint}`,
lattice constant {lattice_constant:.3f} Å (that of the cheap expert).

![The slab from the side](slab.png)

## Speed

{timing_table}

With f = {f:.3f} of the atoms on the expensive expert, which costs r = {r:.1f} times as much per atom as the
cheap one, the bound is S_max = 1 / (f + (1 − f)/r) = {s_max:.2f}. The mixture is {speedup:.2f} times faster
than the expensive expert alone, {fraction_of_bound:.0%} of the bound. The bound assumes equal costs of all
atoms and comes from the same timings. CO and surface atoms have fewer neighbours than the crystal, so a
little more than 100% is possible.

A step is velocity Verlet with the check of its neighbour list. The programs were timed in turn over
{timing_rounds} rounds on {device} ({platform}, jax {jax}); rebuilding the list, about every 20 steps, is not
included. The production run, with rebuilds and files, took {ms_per_step:.1f} ms per step ({ns_per_day:.2f} ns
per day). The cheap expert was not trained on C and O: the last row is a time, its dynamics would be wrong.

## Energy conservation

![Energy against time](energy.png)

{time_ps:.2f} ps at constant energy, {timestep_fs:g} fs steps, {temperature_K:.0f} K on average. The total
energy drifts by {drift:+.4f} ± {drift_stderr:.4f} meV/atom/ps (one standard error), which is {significance}.
At this rate the temperature of the slab would change by {kelvin_per_ns:.1f} K in a nanosecond. The neighbour
lists were enlarged {n_reallocations} times.
{hopped}
## Difference from the expensive expert

Forces of the mixture against those of the expensive expert on every atom, on {n_snapshots} snapshots of this
run. The root mean square difference per component is {force_rmse:.1f} meV/Å; that of the forces themselves is
{force_rms:.0f} meV/Å.

| atoms of the | size of forces, meV/Å | difference, meV/Å |
| --- | ---: | ---: |
{force_table}

This compares the two experts with each other, not with density functional theory; validation errors of the
checkpoint do that.

![Mismatch against height](mismatch.png)

Both experts on each atom of the last frame. Over the {n_in_domain} atoms without C or O within the cutoff,
the root mean square mismatch is {energy_mismatch:.2f} meV in energy and {force_mismatch:.1f} meV/Å in partial
forces. Near molecules the experts were not trained to agree.

## The expert boundary alone

In an ideal crystal every force is zero. With an expert boundary through it, the forces that remain are an
artefact, the ghost force: the largest (and the root mean square near the boundary), meV/Å.

| lattice constant | −2 % | relaxed | +2 % |
| --- | ---: | ---: | ---: |
{ghost_table}

## Files

`summary.json` (force_rmse and ghost_force in meV/Å), `log.csv`, `trajectory.extxyz` (column `expert`), and
the pictures. The demonstration took {total_seconds:.0f} s, compilation included.
"""

HOPPED = """
{n_hopped} Pt atoms are more than {hop} Å from their initial sites. Platinum at {temperature_K:g} K does not
do that in so short a time: this is an error of the checkpoint on surfaces, which energy conservation does not
show.
"""


class Results(NamedTuple):
    """Results of the demonstration."""

    settings: DemoSettings
    experts: tuple[Expert, ...]
    system: System
    final: Atoms  # the last frame, each atom near its initial position
    lattice_constant: float  # Å
    plane: float  # Å, height above which atoms are on the expensive expert
    margin: float  # Å, between the cutoff of the cheap expert and the nearest C or O
    n_hopped: int  # metal atoms further than `hop` from their initial sites
    hop: float  # Å
    summary: dict  # content of `summary.json`
    timings: Timings
    log: simulate.Log  # of the production run; energies in eV, relative to the initial structure
    time_ps: float
    drift: Drift
    production_seconds: float
    exact: Float[np.ndarray, "frames atoms 3"]  # eV/Å, forces of the expensive expert
    difference: Float[np.ndarray, "frames atoms 3"]  # eV/Å, mixture minus exact
    mismatch: Mismatch
    ghost_forces: dict  # from `expert_boundary.ghost_force_report`


def markdown(results: Results, total_seconds: float) -> str:
    """The report as Markdown."""
    settings, system, summary = results.settings, results.system, results.summary
    device = jax.devices()[0]
    seconds_per_step = results.production_seconds / settings.production_steps
    drift, stderr = summary["drift_meV_per_atom_per_ps"], summary["drift_stderr"]
    in_domain = results.mismatch.in_domain
    return TEMPLATE.format(
        **{key: summary[key] for key in ("n_atoms", "f", "r", "s_max", "speedup", "fraction_of_bound")},
        edges=" × ".join(f"{edge:.1f}" for edge in system.box),
        layers=settings.layers,
        expensive=results.experts[0].config["builder"],
        cheap=results.experts[1].config["builder"],
        n_expensive=int(np.sum(system.assignment == 0)),
        plane=results.plane,
        cutoff=results.experts[1].cutoff,
        margin=results.margin,
        checkpoint=Path(settings.checkpoint).stem,
        lattice_constant=results.lattice_constant,
        timing_table="\n".join(timing_lines(results.timings)),
        timing_rounds=settings.timing_rounds,
        device=device.device_kind,
        platform=device.platform,
        jax=jax.__version__,
        ms_per_step=1e3 * seconds_per_step,
        ns_per_day=86400 / seconds_per_step * settings.timestep_fs * 1e-6,
        time_ps=results.time_ps,
        timestep_fs=settings.timestep_fs,
        temperature_K=float(results.log.temperature_K.mean()),
        drift=drift,
        drift_stderr=stderr,
        significance="zero within twice its error"
        if abs(drift) < 2 * stderr
        else "more than twice its error",
        kelvin_per_ns=abs(drift) / (3 * units.kB),  # an energy of 3 kB T per atom, half of it kinetic
        n_reallocations=int(results.log.n_reallocations[-1]),
        hopped=_hopped(results),
        n_snapshots=len(results.exact),
        force_rmse=summary["force_rmse"],
        force_rms=1e3 * _rms(results.exact),
        force_table=_force_table(results),
        n_in_domain=int(in_domain.sum()),
        energy_mismatch=1e3 * _rms(results.mismatch.energy[in_domain]),
        force_mismatch=1e3 * _rms(results.mismatch.partial_force[in_domain]),
        ghost_table=_ghost_table(results.ghost_forces),
        total_seconds=total_seconds,
    )


def draw(results: Results, folder: Path) -> None:
    """Write the pictures of the report."""
    system, final, log = results.system, results.final, results.log
    n_atoms, height = len(final), final.positions[:, 2]
    symbols = final.get_chemical_symbols()
    plots.slab_view(final.positions, symbols, system.assignment).savefig(folder / "slab.png", dpi=150)
    plots.energy_over_time(
        log.time_ps,
        log.total / n_atoms,
        log.kinetic / n_atoms,
        log.potential / n_atoms,
        drift=1e-3 * results.drift.slope,
        drift_stderr=1e-3 * results.drift.standard_error,
    ).savefig(folder / "energy.png", dpi=150)
    expensive = height[system.assignment == 0]
    plots.mismatch_over_height(
        height,
        results.mismatch.energy,
        results.mismatch.partial_force,
        results.mismatch.in_domain,
        region=(expensive.min(), expensive.max()),
    ).savefig(folder / "mismatch.png", dpi=150)


def _hopped(results: Results) -> str:
    """A paragraph on atoms that left their sites; empty if none did, or at high temperature."""
    temperature_K = results.settings.temperature_K
    if not results.n_hopped or temperature_K > MAX_HOP_TEMPERATURE_K:
        return ""
    return HOPPED.format(n_hopped=results.n_hopped, hop=results.hop, temperature_K=temperature_K)


def _force_table(results: Results) -> str:
    """Rows of the table of forces, one for the atoms of each expert."""
    rows = []
    for expert, name in enumerate(("expensive expert", "cheap expert")):
        atoms = results.system.assignment == expert
        size, change = _rms(results.exact[:, atoms]), _rms(results.difference[:, atoms])
        rows.append(f"| {name} | {1e3 * size:.0f} | {1e3 * change:.1f} |")
    return "\n".join(rows)


def _ghost_table(ghost_forces: dict) -> str:
    """Rows of the table of ghost forces, one for each shape of the boundary."""
    labels: Sequence[tuple[str, str]] = (
        ("100", "plane (100)"),
        ("111", "plane (111)"),
        ("sphere", "sphere"),
    )
    return "\n".join(
        f"| {label} | "
        + " | ".join(f"{largest:.1f} ({rms:.1f})" for largest, rms in zip(found["max"], found["rms"]))
        + " |"
        for label, found in ((label, ghost_forces[key]) for key, label in labels)
    )


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
