"""Which skin and which spare capacity make a run fastest?

    python benchmarks/bench_skin.py [--checkpoint ptco] [--skins 0.2 0.4 0.6 0.8 1.0]

A wide skin makes rows longer, so a step costs more, and rebuilds of the lists rarer. Velocity Verlet of a
Pt crystal at two temperatures, with every atom on the cheap expert and with a share of them on the
expensive one; the time per step is that of whole chunks, rebuilds included. Every program first runs one
chunk without being timed, in which the crystal reaches its temperature, and then gets lists of its own.
"""

import argparse
from collections.abc import Sequence

import bench_mixture
import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax_md import space

import moe_md as mm
from moe_md.data import fcc_supercell

TEMPERATURES = (300.0, 900.0)  # K
WARM_UP_CAPACITY = 24  # more columns while a perfect crystal is heated


def chunk_case(model, cells, share: float, kelvin: float, skin: float, multiplier: float, n_steps: int):
    """`n_steps` steps as a program of `(state, neighbors, number of rebuilds)`."""
    crystal = fcc_supercell(bench_mixture.SYMBOL, bench_mixture.LATTICE_CONSTANT, cells)
    position, edges = crystal.positions.astype(np.float32), np.diag(crystal.cell).astype(np.float32)
    potentials, region = model.potentials[:2], bench_mixture.upper_share(position, share)
    if share == 0.0:
        potentials, region = potentials[1:], mm.regions.fixed(np.zeros(len(position), int), n_experts=1)
    species = np.full(len(position), model.experts[0].species.index(bench_mixture.SYMBOL))
    displacement_fn, shift_fn = space.periodic(edges)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        edges,
        potentials,
        species,
        region,
        dr_threshold=skin,
        capacity_multiplier=multiplier,
    )
    advance = harness.dynamics_step(mm.simulate.nve(shift_fn, bench_mixture.TIMESTEP_FS), energy_fn)

    def step(_, carry):
        state, neighbors, rebuilds = carry
        state, new = advance(state, neighbors)
        moved = jnp.any(new.list.reference_position != neighbors.list.reference_position)
        return state, new, rebuilds + moved

    def case(state, extra_capacity: int) -> harness.Case:
        neighbors = neighbor_fn.allocate(state.position, extra_capacity)
        return harness.Case(
            lambda carry: jax.lax.fori_loop(0, n_steps, step, carry), (state, neighbors, jnp.zeros((), int))
        )

    # Half of the kinetic energy becomes potential energy. Capacities are those of the hot crystal.
    heated = case(bench_mixture.start(position, 2 * kelvin), WARM_UP_CAPACITY)
    heated.advance()
    return case(heated.state[0], 0)


def measure(arguments) -> dict:
    """The record of one run."""
    model = harness.two_experts(arguments.checkpoint, tiny=arguments.smoke)
    cells = bench_mixture.cells_for(arguments.atoms)
    n_atoms = 4 * int(np.prod(cells))
    choices = [(skin, arguments.multipliers[0]) for skin in arguments.skins]
    choices += [(arguments.skins[0], multiplier) for multiplier in arguments.multipliers[1:]]
    rows = []
    for share in arguments.shares:
        for kelvin in arguments.temperatures:
            cases = {
                choice: chunk_case(model, cells, share, kelvin, *choice, arguments.steps)
                for choice in choices
            }
            before = {choice: int(case.state[2]) for choice, case in cases.items()}
            timings = harness.interleave(cases, repeats=arguments.repeats, warmup=0)
            for (skin, multiplier), case in cases.items():
                state, neighbors, rebuilds = case.state
                steps = arguments.repeats * arguments.steps
                spent = timings[skin, multiplier]
                per_step = 1e6 / arguments.steps / n_atoms
                rows.append(
                    {
                        "share": share,
                        "temperature_K": kelvin,
                        "skin": skin,
                        "capacity_multiplier": multiplier,
                        "slots": [int(idx.shape[1]) for idx in neighbors.list.idx],
                        "max_neighbors": [n for n in neighbors.max_neighbors if n is not None],
                        "overflow": bool(neighbors.did_buffer_overflow),
                        "kinetic_K": float(
                            jnp.sum(state.momentum**2 / state.mass) / (3 * n_atoms * mm.units.kB)
                        ),
                        "steps_per_rebuild": steps / max(1, int(rebuilds) - before[skin, multiplier]),
                        "us_per_atom": per_step * spent.median,
                        "quartiles": [
                            1e6 * t / arguments.steps / n_atoms for t in (spent.lower, spent.upper)
                        ],
                    }
                )
                print(rows[-1], flush=True)
    return {
        "benchmark": "skin",
        "checkpoint": arguments.checkpoint,
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "experts": [e.config for e in model.experts],
        "atoms": n_atoms,
        "steps": arguments.steps,
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path")
    parser.add_argument("--atoms", type=int, default=8064)
    parser.add_argument("--shares", type=float, nargs="+", default=(0.0, 0.05))
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES, help="K")
    parser.add_argument("--skins", type=float, nargs="+", default=(0.4, 0.2, 0.6, 0.8, 1.0), help="Å")
    parser.add_argument(
        "--multipliers", type=float, nargs="+", default=(1.25, 1.1), help="the first with every skin"
    )
    parser.add_argument("--steps", type=int, default=400, help="of a chunk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="tiny experts, few atoms and steps")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(
            atoms=256, skins=(0.4, 0.6), shares=(0.0, 0.1), temperatures=(300.0,), steps=5, repeats=2
        )
    harness.append(arguments.results, "skin", measure(arguments))


if __name__ == "__main__":
    main()
