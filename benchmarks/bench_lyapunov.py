"""How fast do neighbouring trajectories diverge, and gradients through them grow?

    python benchmarks/bench_lyapunov.py [--temperatures 300 900] [--argon-temperatures 40 120]
        [--steps 8000] [--argon-steps 20000] [--smoke]

Velocity Verlet at constant energy, after a Langevin run to the temperature. A tangent
vector is propagated with the trajectory (`moe_md.gradients.lyapunov`): its position
part is the derivative of the positions along a random initial displacement. After a
transient it grows as exp(t / Lyapunov time). `grown_by_ps` are the times at which it
has grown by 10^3 and 10^6. Argon is a Lennard-Jones crystal at its equilibrium density,
or a liquid. Pt + CO is `ptco-small`: a slab of three layers with two CO, and spheres
around them on the expensive expert. float32 suffices, as tangents are linear and any
trajectory of the system will do.
"""

import argparse
import time
from collections.abc import Sequence

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase.build import add_adsorbate, bulk, fcc111, molecule
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.gradients.lyapunov import flow, lyapunov_exponent, of_positions

LIQUID = 5.72  # Å, of fcc argon at the density of the liquid near its triple point, 1.4 g/cm^3


def argon(lattice_constant: float, repeat: int):
    """Lennard-Jones argon: atoms, experts, parameters, species and region."""
    atoms = bulk("Ar", a=lattice_constant, cubic=True).repeat(repeat)
    expert = mm.experts.lennard_jones(("Ar",), 7.0 if repeat > 2 else 5.0, epsilon=0.0104, sigma=3.4)
    region = mm.regions.fixed(np.zeros(len(atoms), int), 1)
    return atoms, (expert,), (expert.init(None),), np.zeros(len(atoms), int), region


def platinum(tiny: bool):
    """A slab with two CO under `ptco-small`: atoms, experts, parameters, species and region."""
    atoms = fcc111("Pt", (5, 6, 3) if not tiny else (4, 4, 2), a=3.98, vacuum=7.0, orthogonal=True)
    atoms.pbc = True
    for offset in ((1, 1), (3, 4)) if not tiny else ((1, 1),):
        add_adsorbate(atoms, molecule("CO"), 1.85, "ontop", offset=offset, mol_index=1)
    pair = harness.two_experts("ptco-small", tiny=tiny)
    species = np.array([pair.experts[0].species.index(symbol) for symbol in atoms.symbols])
    seeds = np.flatnonzero(atoms.numbers != 78)
    return atoms, pair.experts, pair.params, species, mm.regions.around(seeds, pair.experts[1].cutoff, 1.0)


def measure(name: str, system, temperature_K: float, timestep_fs: float, n_steps: int, n_before: int) -> dict:
    """Lyapunov exponent of one system at one temperature."""
    atoms, experts, params, species, region = system
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box, jnp.float32))
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn, box, mm.experts.potentials(experts, params), species, region, capacity_multiplier=1.5
    )
    masses = atoms.get_masses()
    thermostat = simulate.langevin(
        shift_fn, timestep_fs=timestep_fs, temperature_K=temperature_K, friction_per_fs=0.005
    )
    before = simulate.run(
        neighbor_fn,
        energy_fn,
        thermostat,
        simulate.start(
            thermostat,
            jnp.asarray(atoms.positions, jnp.float32),
            masses=masses,
            temperature_K=temperature_K,
            key=jax.random.key(0),
        ),
        n_steps=n_before,
    ).state
    neighbors = neighbor_fn.allocate(before.position)
    step, start, tangent = tangent_of(
        energy_fn, simulate.nve(shift_fn, timestep_fs), before, masses, neighbors
    )
    started = time.perf_counter()
    found = lyapunov_exponent(
        step, start, tangent, n_steps=n_steps, every=10, carry=neighbors, size_fn=of_positions, skip=0.3
    )
    seconds = time.perf_counter() - started
    if bool(found.carry.did_buffer_overflow):
        raise RuntimeError(
            "a neighbour list overflowed, so the trajectory is not valid: raise capacity_multiplier."
        )
    kinetic = float(np.sum(np.asarray(found.state.momentum, float) ** 2 / (2 * masses[:, None])))
    per_ps = 1000.0 / timestep_fs
    return {
        "name": name,
        "atoms": len(atoms),
        "temperature_K": temperature_K,
        "last_temperature_K": 2 * kinetic / (3 * (len(atoms) - 1) * mm.units.kB),
        "timestep_fs": timestep_fs,
        "steps": n_steps,
        "exponent_per_ps": found.exponent * per_ps,
        "error_per_ps": found.error * per_ps,
        "lyapunov_time_fs": timestep_fs / found.exponent,
        **growth(found.steps / per_ps, found.log_growth),
        "seconds": seconds,
    }


def tangent_of(energy_fn, integrator, before: simulate.State, masses, neighbors):
    """Step function, initial state without total momentum, and tangent along random displacements."""
    init, step = flow(energy_fn, integrator)
    momentum = before.dynamics.momentum
    momentum = momentum - jnp.sum(momentum, axis=0) * (masses / masses.sum())[:, None].astype(np.float32)
    direction = jax.random.normal(jax.random.key(1), before.position.shape, before.position.dtype)
    start, tangent = jax.jvp(
        lambda position: init(position, momentum, masses, neighbors), (before.position,), (direction,)
    )
    return step, start, tangent


def growth(time_ps: np.ndarray, log_growth: np.ndarray) -> dict:
    """Times at which the tangent has grown by 10^3 and 10^6, None if it has not, and about 50 points."""

    def grown_by(factor: float) -> float | None:
        beyond = log_growth >= np.log(factor)
        return float(time_ps[np.argmax(beyond)]) if beyond.any() else None

    thin = slice(None, None, max(1, len(time_ps) // 50))
    return {
        "grown_by_ps": {"1e3": grown_by(1e3), "1e6": grown_by(1e6)},
        "time_ps": [round(float(t), 4) for t in time_ps[thin]],
        "log_growth": [round(float(g), 3) for g in log_growth[thin]],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--temperatures", type=float, nargs="*", default=(300.0, 900.0), help="K, of Pt + CO")
    parser.add_argument(
        "--argon-temperatures",
        type=float,
        nargs="*",
        default=(40.0, 120.0),
        help="K; a solid below 84 K, a liquid above",
    )
    parser.add_argument("--steps", type=int, default=8000, help="of Pt + CO, 1 fs each")
    parser.add_argument("--argon-steps", type=int, default=20_000, help="of argon, 5 fs each")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a few atoms, a few steps")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(steps=60, argon_steps=60, temperatures=(300.0,), argon_temperatures=(120.0,))
    rows, before = [], 20 if arguments.smoke else 500
    repeat = 2 if arguments.smoke else 3
    for temperature in arguments.argon_temperatures:
        system = argon(5.3 if temperature < 84 else LIQUID, repeat)
        rows.append(measure("argon", system, temperature, 5.0, arguments.argon_steps, 4 * before))
        print(_summary(rows[-1]), flush=True)
    for temperature in arguments.temperatures:
        rows.append(measure("Pt + CO", platinum(arguments.smoke), temperature, 1.0, arguments.steps, before))
        print(_summary(rows[-1]), flush=True)
    harness.append(
        arguments.results,
        "lyapunov",
        {
            "benchmark": "lyapunov",
            **harness.environment(),
            "smoke": arguments.smoke,
            "dtype": "float32",
            "model": "ptco-small",
            "rows": rows,
        },
    )


def _summary(row: dict) -> str:
    """One line for people."""
    return (
        f"{row['name']}, {row['atoms']} atoms, {row['temperature_K']:.0f} K: "
        f"{row['exponent_per_ps']:.2f} ± {row['error_per_ps']:.2f} /ps, "
        f"Lyapunov time {row['lyapunov_time_fs']:.0f} fs, grown by {row['grown_by_ps']} ps, "
        f"{row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
