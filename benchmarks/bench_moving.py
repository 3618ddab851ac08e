"""Is energy conserved when CO moves over a terrace and the expensive expert follows it?

    python benchmarks/bench_moving.py [--checkpoint ptco-small] [--runs NAME ...] [--smoke]

A Pt(111) terrace with CO molecules on top sites, periodic, at constant energy.
Every `--kick-every` ps each molecule gets a lateral momentum and the metal the opposite
one. The work of a kick is the change of the kinetic energy. The energy minus the work
of all kicks should be conserved. One line of results per run:

    moving         dynamic spheres around every molecule, float64, 1 fs
    half step      the same with 0.5 fs
    no slope       the first run without dw/dR in the forces, the negative control
    one            one molecule alone
    none           a static region: the two top layers and the molecules
    reassigned     atoms switch expert every 20 steps; the switching work is accumulated
    float32        the first run in float32

The fluctuation is the standard deviation of the energy about the line of the drift.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.reporters.blending import BlendWatch
from moe_md.reporters.trajectory import drift

LATTICE = 3.98  # Å
R_BLEND = 1.5  # Å; the core radius is the cheap expert's cutoff
CHUNK_FS, REASSIGN = 10.0, 20  # fs between frames; steps between reassignments


class Run(NamedTuple):
    """Options of one run."""

    timestep_fs: float = 1.0
    dtype: str = "float64"
    region: str = "spheres"  # spheres or reassigned: around the molecules; layers: static
    molecules: int | None = None  # default `--molecules`
    gate_gradient: bool = True  # dw/dR in the forces


class Stored(NamedTuple):
    """Values of one frame, or arrays over all frames."""

    time_ps: float | np.ndarray
    conserved: float | np.ndarray  # eV, without the work of the kicks
    temperature_K: float | np.ndarray
    momentum: float | np.ndarray
    work: float | np.ndarray  # eV, switching work
    position: np.ndarray  # [n_atoms, 3] Å


RUNS = {
    "moving": Run(),
    "half step": Run(timestep_fs=0.5),
    "no slope": Run(gate_gradient=False),
    "one": Run(molecules=1),
    "none": Run(region="layers"),
    "reassigned": Run(region="reassigned"),
    "float32": Run(dtype="float32"),
}


def terrace(size: tuple[int, int, int], n_molecules: int) -> Atoms:
    """Pt(111) of `size` columns, rows and layers, with upright CO on top sites along the long edge."""
    atoms = fcc111("Pt", size, a=LATTICE, vacuum=7.0, orthogonal=True)
    width = atoms.cell.lengths()[:2]
    top = atoms.positions[atoms.get_tags() == 1, :2]
    for n in range(n_molecules):
        target = width * [(n + 0.5) / n_molecules, 0.5 + 0.25 * (-1) ** n]
        add_adsorbate(
            atoms, molecule("CO"), 1.85, top[np.argmin(np.linalg.norm(top - target, axis=1))], mol_index=1
        )
    atoms.pbc = True
    atoms.positions[:, 2] -= atoms.positions[:, 2].min() - 7.0
    return atoms


class Kicks:
    """Adds lateral momentum to each molecule and the opposite momentum to the metal."""

    def __init__(self, atoms: Atoms, energy_eV: float, seed: int = 0):
        symbols = np.array(atoms.get_chemical_symbols())
        self.pairs = np.stack([np.flatnonzero(symbols == s) for s in "CO"], axis=1)
        self._metal, self._mass, self._energy = symbols == "Pt", atoms.get_masses()[:, None], energy_eV
        self._rng = np.random.default_rng(seed)
        self.work = 0.0

    def __call__(self, state: simulate.State) -> simulate.State:
        """The state after a kick, whose work is added to `work`."""
        momentum = np.asarray(state.dynamics.momentum, float).copy()
        before = self._kinetic(momentum)
        for pair in self.pairs:
            angle = self._rng.uniform(-0.5, 0.5)  # from the x axis
            mass = self._mass[pair]
            added = (
                mass
                / mass.sum()
                * np.sqrt(2 * mass.sum() * self._energy)
                * np.array([np.cos(angle), np.sin(angle), 0.0])
            )
            momentum[pair] += added
            momentum[self._metal] -= (
                added.sum(axis=0) * self._mass[self._metal] / self._mass[self._metal].sum()
            )
        kicked = jnp.asarray(momentum, state.position.dtype)
        self.work += self._kinetic(np.asarray(kicked, float)) - before
        return state._replace(dynamics=state.dynamics.set(momentum=kicked))

    def _kinetic(self, momentum) -> float:
        return float(np.sum(momentum**2 / (2 * self._mass)))


def region_of(run: Run, atoms: Atoms, cutoff: float) -> mm.regions.Region:
    """The region of a run."""
    if run.region == "layers":
        return mm.regions.fixed((atoms.get_tags() > 2).astype(int), 2)
    return mm.regions.around(np.flatnonzero(atoms.numbers != 78), cutoff, R_BLEND)


def simulate_one(name: str, run: Run, arguments) -> dict:
    """Record of one run: its drift, fluctuation, momentum, blend and cost."""
    model = mm.load(arguments.checkpoint)
    atoms = terrace(tuple(arguments.size), run.molecules or arguments.molecules)
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box, run.dtype))
    region = region_of(run, atoms, model.experts[1].cutoff)
    species = np.array([model.experts[0].species.index(s) for s in atoms.symbols])
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(displacement_fn, box, model.potentials, species, region)
    if not run.gate_gradient:
        energy_fn = partial(energy_at_constant_gate, neighbor_fn)
    kicks = Kicks(atoms, arguments.kick_eV)
    switches = {"region": mm.regions.reassigned(region)} if run.region == "reassigned" else {}
    watch = BlendWatch(neighbor_fn, atomic_volume=LATTICE**3 / 4, **switches)
    stored: list[Stored] = []

    def store(frame: simulate.Frame) -> None:
        conserved = frame.conserved - kicks.work
        stored.append(
            Stored(frame.time_ps, conserved, frame.temperature_K, frame.momentum, frame.work, frame.position)
        )

    options = {
        "chunk_steps": round(CHUNK_FS / run.timestep_fs),
        "reporters": [store, watch],
        **switches,
        **({"reassign_every": REASSIGN} if switches else {}),
    }
    system = (neighbor_fn, energy_fn, simulate.nve(shift_fn, run.timestep_fs))
    state, seconds = run_with_kicks(name, run, system, atoms, kicks, options, stored, arguments)
    columns = Stored(*(np.array(column) for column in zip(*stored)))
    if arguments.trajectory:
        save_trajectory(arguments.trajectory, columns, atoms, watch.log.share, kicks.work)
    return {
        "benchmark": "moving",
        **harness.environment(),
        "smoke": arguments.smoke,
        "checkpoint": arguments.checkpoint,
        "run": name,
        **run._asdict(),
        "size": list(arguments.size),
        "molecules": len(kicks.pairs),
        "n_atoms": len(atoms),
        "ps": arguments.ps,
        "kick_eV": arguments.kick_eV,
        "kick_every_ps": arguments.kick_every,
        "kicks_work_eV": kicks.work,
        "farthest": farthest(columns.position[:, kicks.pairs[:, 0]], box),
        **energy_and_momentum(columns, len(atoms)),
        "blend": watch.summary(),
        "n_reallocations": state.n_reallocations,
        "ms_per_step": 1e3 * seconds / state.step,
    }


def energy_at_constant_gate(neighbor_fn, R, neighbor, **_):
    """Energy of the mixture, whose gradient leaves out that of the gate: not conservative."""
    gate, energy = neighbor_fn.parts(R, neighbor)
    return jnp.sum(jax.lax.stop_gradient(gate) * energy)


def run_with_kicks(
    name: str, run: Run, system, atoms: Atoms, kicks: Kicks, options: dict, stored: list[Stored], arguments
) -> tuple[simulate.State, float]:
    """The dynamics, with a kick every `--kick-every` ps; its last state and the seconds it took."""
    steps = round(1e3 * arguments.ps / run.timestep_fs)
    between = round(1e3 * arguments.kick_every / run.timestep_fs)
    *_, integrator = system
    start = simulate.start(
        integrator,
        jnp.asarray(atoms.positions, run.dtype),
        masses=atoms.get_masses(),
        temperature_K=arguments.temperature_K,
        key=jax.random.key(0),
    )
    advance = simulate.run_reassigned if "reassign_every" in options else simulate.run
    result = advance(*system, start, n_steps=0, **options)
    started = time.perf_counter()
    while (done := result.state.step) < steps:
        result = advance(
            *system,
            kicks(result.state),
            neighbors=result.neighbors,
            n_steps=min(between, steps - done),
            **options,
        )
        print(
            f"{name}: {result.state.time_ps:6.2f} ps, {time.perf_counter() - started:6.0f} s, "
            f"{stored[-1].conserved:.6f} eV, {stored[-1].temperature_K:.0f} K",
            flush=True,
        )
    return result.state, time.perf_counter() - started


def energy_and_momentum(columns: Stored, n_atoms: int) -> dict:
    """Drift and fluctuation of the energy, temperature, momentum and switching work."""
    times, energy = columns.time_ps[1:], columns.conserved[1:]
    slope = drift(times, energy, n_atoms)
    residual = energy - np.polyval(np.polyfit(times, energy, 1), times)
    return {
        "temperature_K": float(np.mean(columns.temperature_K)),
        "drift_meV_per_atom_per_ps": slope.slope,
        "drift_stderr": slope.standard_error,
        "fluctuation_meV": 1e3 * float(np.std(residual)),
        "momentum": float(np.max(columns.momentum)),
        "switching_work_eV": float(columns.work[-1]),
    }


def save_trajectory(path: str, columns: Stored, atoms: Atoms, share, kicks_work: float) -> None:
    """Write the frames of a run as `.npz`."""
    np.savez_compressed(
        path,
        position=columns.position.astype(np.float32),
        symbols=atoms.get_chemical_symbols(),
        time_ps=columns.time_ps,
        cell=atoms.cell.lengths(),
        share=share,
        conserved=columns.conserved,
        kicks=kicks_work,
    )


def farthest(carbon: np.ndarray, box: np.ndarray) -> float:
    """Å, the largest lateral displacement of a molecule; `carbon`: `[n_frames, n_molecules, 3]` Å."""
    moved = np.diff(carbon, axis=0)
    path = np.cumsum(moved - box * np.round(moved / box), axis=0)
    return float(np.linalg.norm(path[..., :2], axis=-1).max()) if len(path) else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco-small", help="name or path")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    # Wider than twice the spheres, so that the gates of atoms between two images of a sphere are smooth.
    parser.add_argument(
        "--size", type=int, nargs=3, default=(8, 8, 4), help="columns, rows (even), layers of Pt"
    )
    parser.add_argument("--molecules", type=int, default=3)
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--kick-every", type=float, default=1.0, help="ps")
    parser.add_argument("--kick-eV", type=float, default=0.5)
    parser.add_argument("--temperature-K", type=float, default=600.0, help="of the first velocities")
    parser.add_argument("--trajectory", help="file (.npz) for the frames of the last run")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a fifth of a picosecond of a small terrace")
    arguments = parser.parse_args(arguments)
    runs = {name: RUNS[name] for name in arguments.runs}
    if arguments.smoke:
        vars(arguments).update(size=(6, 8, 3), molecules=2, ps=0.2, kick_every=0.1)
    for name, run in runs.items():
        with jax.enable_x64(run.dtype == "float64"):
            record = simulate_one(name, run, arguments)
        print(
            {
                k: record[k]
                for k in (
                    "run",
                    "drift_meV_per_atom_per_ps",
                    "drift_stderr",
                    "fluctuation_meV",
                    "momentum",
                    "farthest",
                    "ms_per_step",
                )
            },
            flush=True,
        )
        harness.append(arguments.results, "moving", record)


if __name__ == "__main__":
    main()
