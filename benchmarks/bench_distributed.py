"""What does a domain decomposition cost, and how much do devices exchange?

    python benchmarks/bench_distributed.py [--devices 1 2 4 8] [--cells 48 6 6] [--smoke]

A bar of rattled fcc platinum at constant energy, random parameters, float32. A share of
the atoms along its full length is on the expensive expert. The bar is divided across
its length into 1, 2, 4 and 8 subdomains, one on each device. On a CPU the devices are
simulated and share its cores: more devices only add cost, and the ideal time of a step
is that of one device. On a host with accelerators the time should decrease. Bytes are
those of one step on all devices: positions of the halo in one direction and its forces
in the other, for the capacity that is sent and for the atoms in it. The runs are timed
in turn.
"""

import argparse
import os
import time
from collections.abc import Sequence

os.environ["XLA_FLAGS"] = (
    # Number of simulated devices of a CPU; read when jax starts.
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import harness
import jax
import numpy as np
from ase import Atoms
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import distributed, simulate


class Run:
    """A trajectory that continues with each call of `advance`, for `harness.interleave`."""

    def __init__(
        self, slabs: distributed.DomainDecomposition, state: distributed.State, integrator, n_steps: int
    ):
        self._slabs, self._integrator, self._n_steps = slabs, integrator, n_steps
        started = time.perf_counter()
        self.state = jax.block_until_ready(slabs.evaluate(state))
        self.compile_seconds = time.perf_counter() - started

    def advance(self) -> float:
        """Run `n_steps` steps; returns the seconds per step."""
        started = time.perf_counter()
        self.state, reallocated = self._slabs.advance(self.state, self._integrator, self._n_steps)
        jax.block_until_ready(self.state)
        if reallocated:
            raise RuntimeError(
                "a buffer was reallocated, so the time is not valid: run again with more `--repeats`."
            )
        return (time.perf_counter() - started) / self._n_steps


def bar(cells: Sequence[int], share: float) -> tuple[Atoms, np.ndarray]:
    """A rattled crystal, and the expert of each atom: the upper `share` of the atoms is on expert 0."""
    atoms = bulk("Pt", a=3.98, cubic=True).repeat(cells)
    atoms.rattle(0.05, seed=0)
    height = atoms.positions[:, 2]
    return atoms, (height < np.quantile(height, 1 - share)).astype(int)


def make_runs(atoms: Atoms, owner: np.ndarray, arguments) -> dict[int, Run]:
    """A run for each number of devices."""
    experts = (
        harness.small_experts(tiny=True) if arguments.smoke else harness.two_experts("", random=True).experts
    )
    params = [expert.init(jax.random.key(n)) for n, expert in enumerate(experts)]
    species = np.full(len(atoms), experts[0].species.index("Pt"))
    integrator = simulate.nve(space.free()[1], 1.0)
    runs = {}
    for n in arguments.devices:
        slabs = distributed.mixture(
            atoms.cell.lengths(),
            mm.experts.potentials(experts, params),
            species,
            mm.regions.fixed(owner),
            devices=jax.devices()[:n],
            axis=0,
            chunk_size=arguments.chunk_size,
        )
        state = slabs.scatter(atoms.positions.astype(np.float32), atoms.get_masses())
        runs[n] = Run(slabs, state, integrator, arguments.steps)
    return runs


def row_of(n: int, run: Run, timing: harness.Timing) -> dict:
    """Times and exchanged bytes on `n` devices."""
    atom_bytes = 3 * run.state.atoms.position.dtype.itemsize
    sent = sum(
        int(np.sum(np.asarray(face) < run.state.capacities.atoms))
        for face in (run.state.lists.before, run.state.lists.after)
    )
    return {
        "devices": n,
        "median_s": timing.median,
        "quartiles_s": [timing.lower, timing.upper],
        "compile_s": run.compile_seconds,
        "sizes": run.state.capacities._asdict(),
        "halo_atoms": sent,
        "bytes_per_step": 2 * 2 * n * run.state.capacities.halo * atom_bytes,
        "bytes_of_atoms_per_step": 2 * sent * atom_bytes,
    }


def describe(row: dict, first_s: float, n_atoms: int) -> str:
    """One line for people; `first_s`: median of the first number of devices."""
    lower, upper = row["quartiles_s"]
    return (
        f"{row['devices']} devices: {1e3 * row['median_s']:.1f} ms a step "
        f"({1e3 * lower:.1f} to {1e3 * upper:.1f}), {row['median_s'] / first_s:.2f} of the first; "
        f"{row['halo_atoms'] / n_atoms:.2f} halo atoms an atom, {row['bytes_per_step'] / 1e3:.0f} kB a step"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument(
        "--cells", type=int, nargs=3, default=(48, 6, 6), help="cubic cells of four atoms along each edge"
    )
    parser.add_argument("--share", type=float, default=0.1, help="of the atoms, on the expensive expert")
    parser.add_argument("--steps", type=int, default=20, help="of a timed call")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument(
        "--smoke", action="store_true", help="a thin bar, tiny experts, two numbers of devices"
    )
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(devices=(1, 8), cells=(9, 3, 3), steps=2, repeats=2)
    atoms, owner = bar(arguments.cells, arguments.share)
    runs = make_runs(atoms, owner, arguments)
    timings = harness.interleave(runs, repeats=arguments.repeats)
    rows = [row_of(n, run, timings[n]) for n, run in runs.items()]
    for row in rows:
        print(describe(row, rows[0]["median_s"], len(atoms)), flush=True)
    record = {
        "benchmark": "distributed",
        "smoke": arguments.smoke,
        **harness.environment(),
        "dtype": "float32",
        "atoms": len(atoms),
    }
    harness.append(
        arguments.results,
        "distributed",
        {**record, "f": float(np.mean(owner == 0)), "chunk_size": arguments.chunk_size, "rows": rows},
    )


if __name__ == "__main__":
    main()
