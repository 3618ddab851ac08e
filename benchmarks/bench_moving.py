"""CO driven over a terrace, the expensive expert in balls that follow it: is energy conserved?

    python benchmarks/bench_moving.py [--checkpoint ptco-small] [--runs NAME ...] [--smoke]

A Pt(111) terrace with CO molecules on top sites, periodic, at constant energy.
Every `--kick-every` ps each molecule is given lateral energy, and the metal the
opposite momentum; the work of a kick is what the kinetic energy gains. Energy
less work of the kicks is to be conserved. One line of results per run:

    moving         every molecule is followed, float64, 1 fs
    half step      the same with 0.5 fs
    no slope       the same as the first without dw/dR in the forces, the negative control
    one            one molecule alone
    none           nothing is followed: the two top layers and the molecules are the expensive expert's for
    good hard           atoms change hands at once, every 20 steps, and the work is booked
    float32        the same as the first in float32

The fluctuation is the standard deviation about the line of the drift.
"""

import argparse
import time
from collections.abc import Sequence
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
R_BLEND = 1.5  # Å; the core is as wide as what the cheap expert sees
CHUNK_FS, REASSIGN = 10.0, 20  # fs between frames; steps


class Run(NamedTuple):
    """One of the runs."""

    timestep_fs: float = 1.0
    dtype: str = "float64"
    region: str = "balls"  # about the molecules; hard: the same, at once; layers: nothing moves
    molecules: int | None = None  # default what the command line says
    slope: bool = True  # dw/dR in the forces


RUNS = {
    "moving": Run(),
    "half step": Run(timestep_fs=0.5),
    "no slope": Run(slope=False),
    "one": Run(molecules=1),
    "none": Run(region="layers"),
    "reassigned": Run(region="reassigned"),
    "float32": Run(dtype="float32"),
}


def terrace(size: tuple[int, int, int], n_molecules: int) -> Atoms:
    """Pt(111), of so many columns, rows and layers, upright CO on top sites along the long edge."""
    atoms = fcc111("Pt", size, a=LATTICE, vacuum=7.0, orthogonal=True)
    width = atoms.cell.lengths()[:2]
    top = atoms.positions[atoms.get_tags() == 1, :2]
    for n in range(n_molecules):
        wanted = width * [(n + 0.5) / n_molecules, 0.5 + 0.25 * (-1) ** n]
        add_adsorbate(
            atoms, molecule("CO"), 1.85, top[np.argmin(np.linalg.norm(top - wanted, axis=1))], mol_index=1
        )
    atoms.pbc = True
    atoms.positions[:, 2] -= atoms.positions[:, 2].min() - 7.0
    return atoms


class Kicks:
    """Lateral momentum for each molecule, taken from the metal."""

    def __init__(self, atoms: Atoms, energy_eV: float, seed: int = 0):
        symbols = np.array(atoms.get_chemical_symbols())
        self.pairs = np.stack([np.flatnonzero(symbols == s) for s in "CO"], axis=1)
        self._metal, self._mass, self._energy = symbols == "Pt", atoms.get_masses()[:, None], energy_eV
        self._rng = np.random.default_rng(seed)
        self.work = 0.0

    def __call__(self, state: simulate.State) -> simulate.State:
        """The state after a kick; books its work."""
        momentum = np.asarray(state.dynamics.momentum, float).copy()
        before = self._kinetic(momentum)
        for pair in self.pairs:
            angle = self._rng.uniform(-0.5, 0.5)  # about along x
            mass = self._mass[pair]
            given = (
                mass
                / mass.sum()
                * np.sqrt(2 * mass.sum() * self._energy)
                * np.array([np.cos(angle), np.sin(angle), 0.0])
            )
            momentum[pair] += given
            momentum[self._metal] -= (
                given.sum(axis=0) * self._mass[self._metal] / self._mass[self._metal].sum()
            )
        kicked = jnp.asarray(momentum, state.position.dtype)
        self.work += self._kinetic(np.asarray(kicked, float)) - before
        return state._replace(dynamics=state.dynamics.set(momentum=kicked))

    def _kinetic(self, momentum) -> float:
        return float(np.sum(momentum**2 / (2 * self._mass)))


def region_of(run: Run, atoms: Atoms, cutoff: float) -> mm.regions.Region:
    """What the run says."""
    if run.region == "layers":
        return mm.regions.fixed((atoms.get_tags() > 2).astype(int), 2)
    return mm.regions.around(np.flatnonzero(atoms.numbers != 78), cutoff, R_BLEND)


def simulate_one(name: str, run: Run, arguments) -> dict:
    """A run, and what became of its energy."""
    model = mm.load(arguments.checkpoint)
    atoms = terrace(tuple(arguments.size), run.molecules or arguments.molecules)
    box, known = atoms.cell.lengths(), model.experts[0].species
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box, run.dtype))
    region = region_of(run, atoms, model.experts[1].cutoff)
    species = np.array([known.index(s) for s in atoms.symbols])
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(displacement_fn, box, model.potentials, species, region)
    if not run.slope:

        def energy_fn(R, neighbor, **_):
            weight, energy = neighbor_fn.parts(R, neighbor)
            return jnp.sum(jax.lax.stop_gradient(weight) * energy)

    kicks = Kicks(atoms, arguments.kick_eV)
    integrator = simulate.nve(shift_fn, run.timestep_fs)
    steps = round(1e3 * arguments.ps / run.timestep_fs)
    between = round(1e3 * arguments.kick_every / run.timestep_fs)
    switches = {"region": mm.regions.reassigned(region)} if run.region == "reassigned" else {}
    watch = BlendWatch(neighbor_fn, atomic_volume=LATTICE**3 / 4, **switches)
    kept: list[tuple] = []

    def keep(frame: simulate.Frame) -> None:
        kept.append(
            (
                frame.time_ps,
                frame.conserved - kicks.work,
                frame.temperature_K,
                frame.momentum,
                frame.work,
                frame.position,
            )
        )

    options = dict(chunk_steps=round(CHUNK_FS / run.timestep_fs), reporters=[keep, watch])
    if switches:
        options |= switches | {"reassign_steps": REASSIGN}
    result = simulate.run(
        neighbor_fn, energy_fn, integrator, jnp.asarray(atoms.positions, run.dtype), n_steps=0,
        masses=atoms.get_masses(), temperature_K=arguments.temperature_K, key=jax.random.key(0), **options,
    )  # fmt: skip
    started = time.perf_counter()
    while (done := result.state.step) < steps:
        state = kicks(result.state)
        result = simulate.run(
            neighbor_fn,
            energy_fn,
            integrator,
            state=state,
            neighbors=result.neighbors,
            n_steps=min(between, steps - done),
            **options,
        )
        print(
            f"{name}: {result.state.time_ps:6.2f} ps, {time.perf_counter() - started:6.0f} s, "
            f"{kept[-1][1]:.6f} eV, {kept[-1][2]:.0f} K",
            flush=True,
        )
    seconds = time.perf_counter() - started
    times, energy, temperature, momentum, work, position = (np.array(column) for column in zip(*kept))
    if arguments.trajectory:
        np.savez_compressed(
            arguments.trajectory,
            position=position.astype(np.float32),
            symbols=atoms.get_chemical_symbols(),
            time_ps=times,
            cell=box,
            share=watch.log.share,
            conserved=energy,
            kicks=kicks.work,
        )
    slope = drift(times[1:], energy[1:], len(atoms))
    rest = energy[1:] - np.polyval(np.polyfit(times[1:], energy[1:], 1), times[1:])
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
        "farthest": farthest(position[:, kicks.pairs[:, 0]], box),
        "temperature_K": float(np.mean(temperature)),
        "drift_meV_per_atom_per_ps": slope.slope,
        "drift_stderr": slope.standard_error,
        "fluctuation_meV": 1e3 * float(np.std(rest)),
        "momentum": float(np.max(momentum)),
        "switching_work_eV": float(work[-1]),
        "blend": watch.summary(),
        "n_reallocations": result.state.n_reallocations,
        "ms_per_step": 1e3 * seconds / steps,
    }


def farthest(carbon: np.ndarray, box: np.ndarray) -> float:
    """Å, the longest way of a molecule over the surface, over all periodic images."""
    moved = np.diff(carbon, axis=0)
    path = np.cumsum(moved - box * np.round(moved / box), axis=0)
    return float(np.linalg.norm(path[..., :2], axis=-1).max()) if len(path) else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco-small", help="name or path")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    # Wider than twice the balls, or the weights of atoms between two images of a ball have a kink.
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
