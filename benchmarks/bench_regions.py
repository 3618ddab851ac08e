"""What do dynamic spheres around many atoms cost in a large crystal?

    python benchmarks/bench_regions.py [--atoms 10000 100000 1000000] [--seeds 10 100 1000] [--smoke]

Spheres around seeds in a rattled fcc crystal, float32. Timed are the check of the
seeds' neighbour list (`update`), its rebuild, and the gate with the gradient of its
sum. The gate of a seed includes about 130 atoms in a crystal of any size. For
comparison `touch` is one pass over all positions (their sum of squares and its
gradient), which every step needs.
"""

import argparse
from collections.abc import Sequence

import harness
import jax
import jax.numpy as jnp
import numpy as np
from bench_mixture import crystal
from jax_md import space

import moe_md as mm
from moe_md.neighbors import neighbor_list as lists
from moe_md.regions import RegionNeighbors

R_CORE, R_BLEND, SKIN = 6.0, 1.5, 0.4  # Å


def measure(n_atoms: int, n_seeds: int, repeats: int) -> dict:
    """Times for one number of atoms and seeds."""
    position, edges = crystal(n_atoms)
    n_atoms, position = len(position), jnp.asarray(position)
    displacement_fn, _ = space.periodic(edges)
    region = mm.regions.around(
        np.random.default_rng(1).choice(n_atoms, n_seeds, replace=False), R_CORE, R_BLEND
    )
    request = region.required_neighbors(SKIN)
    fns = lists.neighbor_list(edges, [R_CORE], dr_threshold=SKIN)
    near = fns.allocate(position, cutoffs=[request.cutoff], centers=request.centers)

    def update(carry):
        R, nbrs = carry
        return R, fns.update(R, nbrs, cutoffs=request.cutoff[None], centers=request.centers)

    def rebuild(carry):
        R, nbrs = carry
        R = jnp.mod(R + 0.5 * edges, edges)  # displaces all atoms by more than the skin
        return R, fns.update(R, nbrs, cutoffs=request.cutoff[None], centers=request.centers)

    def gate(carry):
        R, nbrs = carry
        gradient = jax.grad(
            lambda R: jnp.sum(
                region.gate(R, displacement_fn, RegionNeighbors(None, None, R_CORE, nbrs))[:, 0]
            )
        )(R)
        return R + 1e-9 * gradient, nbrs

    def touch(carry):
        R, nbrs = carry
        return R - 1e-9 * jax.grad(lambda R: jnp.sum(R**2))(R), nbrs

    cases = {f.__name__: harness.Case(f, (position, near)) for f in (update, rebuild, gate, touch)}
    timings = harness.interleave(cases, repeats=repeats)
    if any(bool(case.state[1].did_buffer_overflow) for case in cases.values()):
        raise RuntimeError("a neighbour list overflowed, so its time is not valid: raise its capacity.")
    return {
        "atoms": n_atoms,
        "seeds": n_seeds,
        "near_a_seed": float(np.sum(np.asarray(near.idx[0]) < n_atoms)) / n_seeds,
        "slots": int(near.idx[0].size),
        **{f"{name}_ms": [1e3 * x for x in (t.median, t.lower, t.upper)] for name, t in timings.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=int, nargs="+", default=(10_000, 100_000, 1_000_000))
    parser.add_argument("--seeds", type=int, nargs="+", default=(10, 100, 1000))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="two small sizes, two repeats")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(atoms=(2_000,), seeds=(5, 10), repeats=2)
    rows = []
    for n_atoms in arguments.atoms:
        for n_seeds in arguments.seeds:
            rows.append(measure(n_atoms, n_seeds, arguments.repeats))
            print(
                {k: [round(x, 2) for x in v] if isinstance(v, list) else v for k, v in rows[-1].items()},
                flush=True,
            )
    harness.append(
        arguments.results,
        "regions",
        {
            "benchmark": "regions",
            **harness.environment(),
            "smoke": arguments.smoke,
            "r_core": R_CORE,
            "r_blend": R_BLEND,
            "dtype": "float32",
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
