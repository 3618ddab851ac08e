"""What does a gradient through a trajectory cost, in time and in memory?

    python benchmarks/bench_gradient.py [--systems lj ptco-small] [--lj-steps 100 1000 10000 100000] [--smoke]

The gradient of the last energy and velocities with respect to parameters and the
start, beside the trajectory alone, at constant energy in float64: plain reverse
mode, which keeps what every step computed; with states kept and steps computed
again (`checkpoint="sqrt"`); walked back in time (`gradients.reversible_rollout`).
Lists are made anew at every tenth step in all of them. Memory is what the
compiled program sets aside, arguments and results left out. What would need more
than `--max-GB` is compiled, and not run. Long trajectories run once.

    lj           108 atoms under one Lennard-Jones expert
    ptco-small   a crystal under the shipped pair, a ball that follows an atom on the expensive expert
"""

import argparse
import time
from collections.abc import Sequence

import harness
import jax
import jax.numpy as jnp
import numpy as np
from bench_mixture import LATTICE_CONSTANT, SYMBOL, cells_for
from jax_md import space

import moe_md as mm
from moe_md import gradients, simulate, units
from moe_md.data import fcc_supercell

TEMPERATURE_K, TIMESTEP_FS, UPDATE_EVERY = 300.0, 1.0, 10
LONG = {"lj": 10_000, "ptco-small": 1000}  # steps of a trajectory that runs once
WAYS = {
    "plain": (gradients.rollout, {}),
    "rematerialised": (gradients.rollout, {"checkpoint": "sqrt"}),
    "reversible": (gradients.reversible_rollout, {}),
}


class Once(harness.Case):
    """A program that starts from the same state at each call."""

    def advance(self) -> float:
        started = time.perf_counter()
        jax.block_until_ready(self._call(self.state))
        return time.perf_counter() - started

    @property
    def bytes(self) -> int:
        """Set aside while it runs."""
        return self._call.memory_analysis().temp_size_in_bytes


def system(name: str, n_atoms: int, tiny: bool):
    """What a trajectory starts from: energy, integrator, neighbours, and `(params, position,
    momentum)` with the masses.
    """
    frame = fcc_supercell(SYMBOL, LATTICE_CONSTANT, cells_for(n_atoms))
    edges, n_atoms = np.diag(frame.cell), len(frame.symbols)
    rng = np.random.default_rng(0)
    position = jnp.asarray(frame.positions + 0.05 * rng.normal(size=frame.positions.shape))
    displacement_fn, shift_fn = space.periodic(jnp.asarray(edges))
    if name == "lj":
        experts = (mm.experts.lennard_jones((SYMBOL,), 5.0, epsilon=0.6, sigma=2.5446),)
        params, region, index = (
            (experts[0].init(None),),
            mm.regions.fixed(np.zeros(n_atoms, int), n_experts=1),
            0,
        )
    else:
        model = harness.two_experts(name, tiny=tiny)
        experts, params = model.experts, tuple(model.params)
        region, index = mm.regions.around([0], 3.0, 1.5), experts[0].species.index(SYMBOL)
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        edges,
        mm.experts.potentials(experts, params),
        np.full(n_atoms, index),
        region,
        capacity_multiplier=1.5,
    )
    mass = np.full(n_atoms, 195.08)
    momentum = rng.normal(size=position.shape) * np.sqrt(mass[:, None] * units.kB * TEMPERATURE_K)
    params = jax.tree.map(jnp.asarray, params)
    start = (params, position, jnp.asarray(momentum - momentum.mean(axis=0)))
    return (
        fns[1],
        simulate.nve(shift_fn, TIMESTEP_FS),
        fns[0].allocate(position, extra_capacity=8),
        start,
        jnp.asarray(mass),
    )


def measure(name: str, n_atoms: int, n_steps: int, ways, arguments) -> list[dict]:
    """One length: the trajectory alone, then each way."""
    energy_fn, integrator, neighbors, start, mass = system(name, n_atoms, arguments.smoke)

    def value(inputs, roll=gradients.rollout, **options):
        params, position, momentum = inputs
        state = integrator.init(position, momentum, mass, None, None)
        out = roll(
            energy_fn,
            integrator,
            state,
            neighbors,
            n_steps,
            params=params,
            update_every=UPDATE_EVERY,
            **options,
        )
        return out.energy + jnp.sum(out.state.velocity[::2]), out.overflow

    def gradient_by(roll, options):
        return lambda inputs: jax.grad(lambda x: value(x, roll, **options), has_aux=True)(inputs)

    cases = {"forward": Once(value, start)}
    for way in ways:
        cases[way] = Once(gradient_by(*WAYS[way]), start)
        print(
            f"{name}, {n_steps} steps, {way}: {1e-6 * cases[way].bytes:,.1f} MB, "
            f"compiled in {cases[way].compile_seconds:.0f} s",
            flush=True,
        )
    if bool(cases["forward"]._call(start)[1]):
        raise RuntimeError("a list overflowed; its time means nothing.")
    fit = {way: case for way, case in cases.items() if case.bytes <= 1e9 * arguments.max_GB}
    long = n_steps >= LONG[name]
    timings = harness.interleave(fit, repeats=1 if long else arguments.repeats, warmup=0 if long else 1)
    rows = []
    for way, case in cases.items():
        spent = timings.get(way)
        rows.append({
            "system": name,
            "atoms": int(mass.size),
            "steps": n_steps,
            "way": way,
            "bytes": case.bytes,
            "snapshot_bytes": n_steps // UPDATE_EVERY * int(mass.size) * 24 if way == "reversible" else 0,
            "compile_s": case.compile_seconds,
            "median_s": None if spent is None else spent.median,
            "quartiles_s": None if spent is None else [spent.lower, spent.upper],
            "repeats": 0 if spent is None else spent.repeats,
            "over_forward": None if spent is None else spent.median / timings["forward"].median,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=("lj", "ptco-small"), default=("lj", "ptco-small"))
    parser.add_argument("--lj-steps", type=int, nargs="+", default=(100, 1000, 10_000, 100_000))
    parser.add_argument("--ptco-steps", type=int, nargs="+", default=(10, 100, 1000))
    parser.add_argument("--ptco-atoms", type=int, default=500)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--repeats", type=int, default=5, help="of trajectories that are not long")
    parser.add_argument("--max-GB", type=float, default=4.0, help="what needs more is not run")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="few steps of few atoms under tiny experts")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(lj_steps=(20, 40), ptco_steps=(10,), ptco_atoms=108, repeats=1)
    record = {"benchmark": "gradient", **harness.environment(), "smoke": arguments.smoke, "dtype": "float64",
              "update_every": UPDATE_EVERY, "timestep_fs": TIMESTEP_FS, "note": arguments.note}  # fmt: skip
    for name in arguments.systems:
        lengths, n_atoms = (
            (arguments.lj_steps, 108) if name == "lj" else (arguments.ptco_steps, arguments.ptco_atoms)
        )
        for n_steps in lengths:
            with jax.enable_x64(True):
                rows = measure(name, n_atoms, n_steps, arguments.ways, arguments)
            harness.append(arguments.results, "gradient", {**record, "rows": rows})
            jax.clear_caches()


if __name__ == "__main__":
    main()
