"""What do slabs cost, and what do they exchange?

    python benchmarks/bench_distributed.py [--devices 1 2 4 8] [--cells 48 6 6] [--smoke]

A bar of rattled fcc platinum at constant energy, random parameters, float32; a
share of it along its whole length is the expensive expert's. It is cut across
into 1, 2, 4 and 8 slabs, one on each device. On a CPU the devices are simulated
and share its cores: all that they add is cost, and a step ideally takes as long
as on one. On a host with accelerators the time is to fall. Bytes are those of a
step on all devices together: positions of the halo there, its forces back, at
the capacity that is sent, and of the atoms in it. Runs take turns.
"""

import argparse
import os
import time
from collections.abc import Sequence

os.environ["XLA_FLAGS"] = (
    # before jax starts; of a CPU
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import harness
import jax
import numpy as np
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import distributed, simulate


class Run:
    """A trajectory that goes on call by call, as `harness.interleave` wants it."""

    def __init__(
        self, slabs: distributed.DomainDecomposition, state: distributed.State, integrator, n_steps: int
    ):
        self._slabs, self._integrator, self._n_steps = slabs, integrator, n_steps
        started = time.perf_counter()
        self.state = jax.block_until_ready(slabs.evaluate(state))
        self.compile_seconds = time.perf_counter() - started

    def advance(self) -> float:
        """Some steps; seconds of one."""
        started = time.perf_counter()
        self.state, grew = self._slabs.advance(self.state, self._integrator, self._n_steps)
        jax.block_until_ready(self.state)
        if grew:
            raise RuntimeError("a capacity grew; the time means nothing.")
        return (time.perf_counter() - started) / self._n_steps


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
    atoms = bulk("Pt", a=3.98, cubic=True).repeat(arguments.cells)
    atoms.rattle(0.05, seed=0)
    box, height = atoms.cell.lengths(), atoms.positions[:, 2]
    owner = (height < np.quantile(height, 1 - arguments.share)).astype(int)
    experts = (
        harness.small_experts(tiny=True) if arguments.smoke else harness.two_experts("", random=True).experts
    )
    params = [expert.init(jax.random.key(n)) for n, expert in enumerate(experts)]
    species = np.full(len(atoms), experts[0].species.index("Pt"))
    integrator = simulate.nve(space.free()[1], 1.0)
    runs = {}
    for n in arguments.devices:
        slabs = distributed.mixture(
            box,
            mm.experts.potentials(experts, params),
            species,
            mm.regions.fixed(owner),
            devices=jax.devices()[:n],
            axis=0,
            chunk_size=arguments.chunk_size,
        )
        state = slabs.scatter(atoms.positions.astype(np.float32), atoms.get_masses())
        runs[n] = Run(slabs, state, integrator, arguments.steps)
    timings = harness.interleave(runs, repeats=arguments.repeats)
    rows, fewest = [], timings[arguments.devices[0]].median
    for n, run in runs.items():
        atom_bytes = 3 * run.state.atoms.position.dtype.itemsize
        sent = sum(
            int(np.sum(np.asarray(face) < run.state.capacities.atoms))
            for face in (run.state.lists.before, run.state.lists.after)
        )
        median, lower, upper = (timings[n].median, timings[n].lower, timings[n].upper)
        rows.append(
            {
                "devices": n,
                "median_s": median,
                "quartiles_s": [lower, upper],
                "compile_s": run.compile_seconds,
                "sizes": run.state.capacities._asdict(),
                "halo_atoms": sent,
                "bytes_per_step": 2 * 2 * n * run.state.capacities.halo * atom_bytes,
                "bytes_of_atoms_per_step": 2 * sent * atom_bytes,
            }
        )
        print(
            f"{n} devices: {1e3 * median:.1f} ms a step ({1e3 * lower:.1f} to {1e3 * upper:.1f}), "
            f"{median / fewest:.2f} of the first; "
            f"{sent / len(atoms):.2f} halo atoms an atom, {rows[-1]['bytes_per_step'] / 1e3:.0f} kB a step",
            flush=True,
        )
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
