"""A long run of a slab with a CO molecule: drift, memory and compilations over time.

    python benchmarks/bench_soak.py [--steps 100000] [--checkpoint ptco] [--out DIR] [--smoke]
    python benchmarks/bench_soak.py --checkpoint ptco-small --size 8 8 8 --dtype float32 --temperature-K 500

Constant energy, or with `--thermostat` constant temperature. The expensive expert is in
spheres that follow C and O, and all files of a run are written. The benchmark reports
energy drift, momentum, displacement and bond length of the molecule, memory and number of
compiled programs early and late, reallocations of neighbour lists, and time per step. A
run that was stopped continues from its restart file. Results are appended to
`benchmarks/results/soak.jsonl`.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.geometry import find_mic
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.restart import Restart, load_restart
from moe_md.reporters.trajectory import LogWriter, drift

TIMESTEP_FS, CHUNK = 1.0, 100  # fs, steps
R_BLEND = 1.5  # Å; the core radius is the cheap expert's cutoff


def slab(size: tuple[int, int, int]) -> Atoms:
    """Pt(111) with vacuum and an upright CO; `size` is the number of columns, rows and layers."""
    atoms = fcc111("Pt", size, a=3.98, vacuum=7.0, orthogonal=True)
    add_adsorbate(atoms, molecule("CO"), 1.85, "ontop", mol_index=1)
    atoms.pbc = True
    return atoms


def prepare(checkpoint: str, size: tuple[int, int, int]):
    """Atoms, `(neighbor_fn, energy_fn)` and the shift function."""
    model = mm.load(checkpoint)
    atoms = slab(size)
    known = model.experts[0].species
    box = jnp.asarray(atoms.cell.lengths())
    displacement_fn, shift_fn = space.periodic(box)
    seeds = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), ("C", "O")))
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        np.asarray(box),
        model.potentials,
        np.array([known.index(s) for s in atoms.symbols]),
        mm.regions.around(seeds, model.experts[1].cutoff, R_BLEND),
    )
    return atoms, fns, shift_fn


class Molecule:
    """Reporter of the largest displacement of C along the surface and of C-O bond lengths, Å."""

    def __init__(self, atoms: Atoms):
        self._cell = atoms.cell
        self._carbon, self._oxygen = (atoms.symbols.search(symbol)[0] for symbol in "CO")
        self._last, self._displacement = None, np.zeros(3)
        self.farthest, self.bonds = 0.0, []

    def __call__(self, frame: simulate.Frame) -> None:
        position = np.asarray(frame.position, float)
        (bond,), _ = find_mic([position[self._oxygen] - position[self._carbon]], self._cell)
        self.bonds.append(float(np.linalg.norm(bond)))
        if self._last is not None:
            (moved,), _ = find_mic([position[self._carbon] - self._last], self._cell)
            self._displacement = self._displacement + moved
            self.farthest = max(self.farthest, float(np.linalg.norm(self._displacement[:2])))
        self._last = position[self._carbon]


RUN_ARGUMENTS = ("checkpoint", "size", "dtype", "temperature_K", "thermostat")  # define the run


class Resources:
    """Reporter of `(step, memory in MB, compiled programs so far)` of this process."""

    def __init__(self):
        self.rows: list[tuple[int, float, int]] = []
        self._compiled = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event: str, seconds: float, **_) -> None:
        self._compiled += event == "/jax/core/compile/backend_compile_duration"

    def __call__(self, frame: simulate.Frame) -> None:
        self.rows.append((frame.step, resident_MB(), self._compiled))


def resident_MB() -> float:
    """Resident memory of this process, MB; its peak on systems without /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="ptco")
    parser.add_argument(
        "--size", type=int, nargs=3, default=(4, 6, 3), help="columns, rows (even) and layers of Pt"
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--temperature-K", dest="temperature_K", type=float, default=300.0)
    parser.add_argument(
        "--thermostat", action="store_true", help="Langevin dynamics instead of constant energy"
    )
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--smoke", action="store_true", help="few steps, to test that it runs")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        arguments.steps = 20 * CHUNK
    with jax.enable_x64(arguments.dtype == "float64"):
        record = soak(arguments)
    harness.append(arguments.results, "soak", record)
    for name, value in record.items():
        print(f"{name}: {value}")


def soak(arguments: argparse.Namespace) -> dict:
    """Run, or continue a run that was stopped, and return the record of results."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    atoms, (neighbor_fn, energy_fn), shift_fn = prepare(arguments.checkpoint, tuple(arguments.size))
    integrator = simulate.nve(shift_fn, TIMESTEP_FS)
    if arguments.thermostat:
        integrator = simulate.langevin(shift_fn, TIMESTEP_FS, arguments.temperature_K, friction_per_fs=0.002)
    run = partial(simulate.run, neighbor_fn, energy_fn, integrator, chunk_steps=CHUNK)
    start = partial(
        simulate.start,
        integrator,
        masses=atoms.get_masses(),
        temperature_K=2 * arguments.temperature_K,
        key=jax.random.key(0),
    )
    position, append = jnp.asarray(atoms.get_positions(wrap=True)), {}
    restart = arguments.out / "restart.msgpack"
    n_steps, fingerprint = arguments.steps, {name: str(getattr(arguments, name)) for name in RUN_ARGUMENTS}
    if restart.exists():
        like = run(start(position), n_steps=0)
        state, neighbors = load_restart(restart, like.state, like.neighbors, fingerprint)
        append = {"append": True, "until_step": state.step}
        n_steps -= state.step
    else:
        relaxed = simulate.relax(neighbor_fn, energy_fn, shift_fn, position, n_steps=200)
        state, neighbors = start(relaxed.position), relaxed.neighbors
    resources, carbon_monoxide = Resources(), Molecule(atoms)
    symbols, cell = atoms.get_chemical_symbols(), atoms.cell.array
    writers = [
        LogWriter(arguments.out / "log.csv", **append),
        H5MDWriter(arguments.out / "trajectory.h5", symbols, cell, True, **append),
        Restart(restart, every=10, fingerprint=fingerprint),
    ]
    started = time.perf_counter()
    try:
        reporters = [*writers, resources, carbon_monoxide]
        result = run(state, n_steps=n_steps, neighbors=neighbors, reporters=reporters)
    finally:
        for writer in writers:
            writer.close()
    seconds = time.perf_counter() - started
    log = np.genfromtxt(arguments.out / "log.csv", delimiter=",", names=True)
    n_expensive = np.count_nonzero(np.asarray(result.neighbors.centers[0]) < len(atoms))
    return {
        "benchmark": "soak",
        "smoke": arguments.smoke,
        **harness.environment(),
        **{name: getattr(arguments, name) for name in RUN_ARGUMENTS},
        "this_process_steps": int(n_steps),
        "seconds_per_step": seconds / max(n_steps, 1),
        "share_on_expensive_expert": n_expensive / len(atoms),
        **of_log(log, len(atoms)),
        **of_process(resources, carbon_monoxide),
    }


def of_log(log: np.ndarray, n_atoms: int) -> dict:
    """Results over the whole run, from its log."""
    slope = drift(log["time_ps"], log["total"], n_atoms)
    return {
        "atoms": n_atoms,
        "steps": int(log["step"][-1]),
        "drift_meV_per_atom_per_ps": slope.slope,
        "drift_stderr": slope.standard_error,
        "momentum": float(log["momentum"].max()),
        "mean_temperature_K": float(log["temperature_K"][len(log) // 5 :].mean()),
        "lists_grown": int(log["n_reallocations"][-1]),
    }


def of_process(resources: Resources, carbon_monoxide: Molecule) -> dict:
    """Results over the part of the run that this process computed."""
    steps, memory, compiled = map(np.asarray, zip(*resources.rows))
    early = np.searchsorted(steps, steps[0] + (steps[-1] - steps[0]) // 10)
    return {
        "co_farthest_A": carbon_monoxide.farthest,  # along the surface
        "co_bond_A": [min(carbon_monoxide.bonds), max(carbon_monoxide.bonds)],
        "memory_MB": [float(memory[early]), float(memory[-1])],
        "compiled": [int(compiled[early]), int(compiled[-1])],
    }


if __name__ == "__main__":
    main()
