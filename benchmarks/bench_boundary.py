"""How far do forces change at the boundary between the experts in a hot crystal?

    python benchmarks/bench_boundary.py [--checkpoint ptco] [--temperature 1020]

A crystal of Pt of which half is on each expert, divided by planes, at a constant temperature (default: half
of its melting point). Forces of the mixture and of the expensive expert alone are compared at the same
positions, by the distance of atoms from the nearest plane. On the cheap side, far from the planes, their
difference is that of the two experts.
"""

import argparse
from collections.abc import Sequence

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from jax_md import space

import moe_md as mm
from moe_md.data import fcc_supercell

SYMBOL, LATTICE_CONSTANT = "Pt", 3.984  # Å
NEAR, FAR = 5.0, 10.0  # Å, from the plane
TIMESTEP_FS, FRICTION = 2.0, 0.01  # fs, 1/fs


def measure(arguments) -> dict:
    """The record of one run."""
    model = harness.two_experts(arguments.checkpoint, tiny=arguments.smoke)
    crystal = fcc_supercell(SYMBOL, LATTICE_CONSTANT, arguments.cells)
    position, edges = crystal.positions.astype(np.float32), np.diag(crystal.cell).astype(np.float32)
    species = np.full(len(position), model.experts[0].species.index(SYMBOL))
    layers = position[:, 2] + 0.25 * LATTICE_CONSTANT  # planes lie midway between layers
    owner = (layers > edges[2] / 2).astype(int)
    displacement_fn, shift_fn = space.periodic(edges)
    (neighbor_fn, energy_fn), alone = (
        mm.mixture_neighbor_list(displacement_fn, edges, model.potentials, species, region)
        for region in (mm.regions.fixed(owner), mm.regions.fixed(np.zeros_like(owner), n_experts=2))
    )
    masses = np.full(len(position), atomic_masses[atomic_numbers[SYMBOL]])
    integrator = mm.simulate.langevin(shift_fn, TIMESTEP_FS, arguments.temperature, FRICTION)
    state = mm.simulate.start(
        integrator,
        jnp.asarray(position),
        masses=masses,
        temperature_K=2 * arguments.temperature,
        key=jax.random.key(0),
    )
    force_of = [jax.jit(jax.grad(fn)) for fn in (energy_fn, alone[1])]
    others, forces, heights, temperatures = alone[0].allocate(position), [], [], []
    neighbors = None
    for sample in range(-arguments.equilibration, arguments.samples):
        result = mm.simulate.run(
            neighbor_fn, energy_fn, integrator, state, n_steps=arguments.every, neighbors=neighbors
        )
        state, neighbors = result.state, result.neighbors
        if sample >= 0:
            R = state.position
            forces.append(
                [
                    -np.asarray(force(R, lists.update(R)))
                    for force, lists in zip(force_of, (neighbors, others))
                ]
            )
            heights.append(np.mod(np.asarray(R)[:, 2] + 0.25 * LATTICE_CONSTANT, edges[2]))
            temperatures.append(float(result.log.temperature_K[-1]))
    mixed, expensive = np.moveaxis(np.asarray(forces, float), 1, 0)
    half = edges[2] / 2
    distance = np.abs((np.asarray(heights) + half / 2) % half - half / 2)
    is_cheap = np.broadcast_to(owner == 1, distance.shape)

    def rms(chosen) -> float:
        return 1e3 * float(np.sqrt(np.mean((mixed - expensive)[chosen] ** 2)))

    return {
        "benchmark": "boundary",
        "checkpoint": arguments.name or arguments.checkpoint,
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "atoms": len(position),
        "samples": arguments.samples,
        "temperature_K": arguments.temperature,
        "mean_temperature_K": float(np.mean(temperatures)),
        "rms_force_meV_per_A": 1e3 * float(np.sqrt(np.mean(expensive**2))),
        "near_meV_per_A": rms(distance < NEAR),
        "near_expensive_side_meV_per_A": rms((distance < NEAR) & ~is_cheap),
        "near_cheap_side_meV_per_A": rms((distance < NEAR) & is_cheap),
        "far_cheap_side_meV_per_A": rms((distance > FAR) & is_cheap),
        "far_expensive_side_meV_per_A": rms((distance > FAR) & ~is_cheap),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path")
    parser.add_argument("--name", help="of the pair in the table; default the checkpoint's")
    parser.add_argument("--temperature", type=float, default=1020.0, help="K")
    parser.add_argument("--cells", type=int, nargs=3, default=(3, 3, 12), help="cubic cells of four atoms")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--every", type=int, default=100, help="steps between samples")
    parser.add_argument("--equilibration", type=int, default=10, help="samples that are not used")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="tiny experts, few steps")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(samples=2, every=2, equilibration=1, temperature=100.0)
    record = measure(arguments)
    print({key: round(value, 2) for key, value in record.items() if isinstance(value, float)})
    harness.append(arguments.results, "boundary", record)


if __name__ == "__main__":
    main()
