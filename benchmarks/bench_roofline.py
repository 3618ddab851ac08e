"""How near is each expert to the limits of arithmetic and memory, and where does its time go?

    python benchmarks/bench_roofline.py [--checkpoint ptco] [--rows 64] [--smoke]

A chunk of rows of a rattled metal, float32, as a mixture computes it: energies alone, and energies with their
gradient. Two lower bounds stand beside the measured time:

    products   every matrix product of the program (found in its jaxpr), timed alone with its shapes
    memory     all bytes that XLA's kernels read and write, at the rate of a triad on arrays as large as
               the spherical harmonics of the chunk: the same level of cache, or the memory of a GPU

The share reached is the larger bound divided by the measured time. The profiler gives the time of each part
of the network.

A second table accounts for a step of dynamics with every atom on the cheap expert: programs of which each
does what the one before does and more, timed in turn.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import bench_mixture
import harness
import jax
import jax.numpy as jnp
import jax_md
import numpy as np
from ase.build import bulk
from jax.extend.core import ClosedJaxpr, Jaxpr

import moe_md as mm
from moe_md.experts import Expert, energies_and_partial_forces
from moe_md.experts.chunks import SUMS_CHUNK, components_for
from moe_md.experts.neighbor_sums import energies_of, with_partial_forces
from moe_md.mixture.neighbors import LANES
from moe_md.neighbors.images import displacements, nearest_images
from moe_md.neighbors.rows import Neighborhood, rows_from_images

SYMBOL, LATTICE, RATTLE = "Pt", 3.98, 0.1  # Å
PARTS = {  # the first pattern that the name of an operation matches
    "embedding": r"embed|first_projection|basis_linear",
    "latents": r"latent_",
    "readout": r"readout|_centre_network|Network.energies",
    "environment": r"tensor_product|,n[a-z]{2}->n|naic|_mixed",
}


def sample(expert: Expert, n_rows: int, skin: float) -> Neighborhood:
    """Rows of a rattled crystal, with the neighbours that a mixture would pass to this expert."""
    atoms = bulk(SYMBOL, cubic=True, a=LATTICE) * ((int(np.ceil((n_rows / 4) ** (1 / 3))),) * 3)
    position = atoms.positions + RATTLE * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    kinds = np.full(len(atoms), expert.species.index(SYMBOL))
    make = partial(
        rows_from_images,
        position,
        kinds,
        atoms.cell.array,
        atoms.pbc,
        centers=np.arange(n_rows),
        dtype=np.float32,
    )
    cutoff = expert.cutoff + (0.0 if expert.pack_neighbors else skin)
    needed = make(cutoff).mask.shape[1]
    has_own_rows = expert.pack_neighbors or expert.neighbor_sums is not None
    capacity = int(np.ceil((1.075 if has_own_rows else 1.25) * needed))  # defaults of the mixture
    if expert.neighbor_sums is not None:
        capacity = -(-capacity // LANES) * LANES
    return jax.tree.map(jnp.asarray, make(cutoff, max_neighbors=capacity))


def products(jaxpr: Jaxpr) -> collections.Counter:
    """Count the matrix products of a program by (left shape, right shape, dimension numbers)."""
    found: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (v.aval.shape for v in equation.invars)
            found[left, right, equation.params["dimension_numbers"]] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, (Jaxpr, ClosedJaxpr)):
                    found.update(products(getattr(inner, "jaxpr", inner)))
    return found


def flops_of(left, right, numbers) -> float:
    """Floating-point operations of a matrix product."""
    (_, contracted), (_, batch) = numbers
    others = [n for axis, n in enumerate(right) if axis not in (*contracted, *batch)]
    return 2.0 * np.prod(left) * np.prod(others)


def seconds_of(fn, arguments, repeats: int) -> float:
    """Median seconds of calls of a compiled program, without the first two."""
    compiled = jax.jit(fn, compiler_options=mm.compiler_options()).lower(*arguments).compile()
    spent = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        spent.append(time.perf_counter() - began)
    return float(np.median(spent[2:]))


def product_seconds(left, right, numbers, repeats: int) -> float:
    """Seconds of one matrix product, from many in a row."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(k, s, jnp.float32) for k, s in zip(keys, (left, right)))
    count = int(np.clip(2e8 / flops_of(left, right, numbers), 4, 400))

    def loop(a, b):
        def body(_, carry):
            a, total = carry
            out = jax.lax.dot_general(a, b, numbers)
            value = out.reshape(-1)[0]
            # Each product depends on the one before.
            return a.at[(0,) * a.ndim].set(value * 1e-6), total + value

        return jax.lax.fori_loop(0, count, body, (a, jnp.zeros(())))

    return seconds_of(loop, (a, b), repeats) / count


def bandwidth(size: int, repeats: int) -> float:
    """Bytes per second of a triad of arrays of `size` float32 numbers."""
    count = int(np.clip(2**26 / size, 2, 2**12))

    def loop(x, y):
        return jax.lax.fori_loop(0, count, lambda _, x: 0.5 * x + y, x)

    x = jnp.ones(size, jnp.float32)
    return 3 * 4 * size * count / seconds_of(loop, (x, x), repeats)


def where_time_goes(fn, arguments, calls: int) -> dict[str, float]:
    """Share of the time of a program in each part of the network, and in products of all parts."""
    compiled = jax.jit(fn, compiler_options=mm.compiler_options()).lower(*arguments).compile()
    text = compiled.as_text()
    names = dict(re.findall(r"%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text))
    jax.block_until_ready(compiled(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(compiled(*arguments))
        (file,) = glob.glob(f"{folder}/plugins/profile/*/*.trace.json.gz")
        events = json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
    spent: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[event["args"]["hlo_op"]].append(event["dur"])
    shares: collections.Counter = collections.Counter()
    for operation, durations in spent.items():
        name = names.get(operation, "")
        part = next(
            (part for part, pattern in PARTS.items() if re.search(pattern, name)), "radial, harmonics, sums"
        )
        shares[part] += float(np.median(durations))
        if "dot" in operation or name.endswith("dot_general"):
            shares["products of all parts"] += float(np.median(durations))
    total = sum(v for k, v in shares.items() if k != "products of all parts")
    return {part: value / total for part, value in shares.items()} if total else {}


def roofline(expert: Expert, params, arguments) -> list[dict]:
    """Measure energies alone, and energies with their gradient; one row of results each."""
    functions, n_rows = expert.neighbor_sums, arguments.rows
    if functions is not None:
        n_rows = arguments.rows * SUMS_CHUNK // 64
    rows = sample(expert, n_rows, arguments.skin)
    l_max = expert.config.get("l_max", len(expert.config.get("num_radial", (1,))) - 1)
    rate = bandwidth(rows.mask.size * (l_max + 1) ** 2, arguments.repeats)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    given = rows if functions is None else components_for(expert, rows)
    passes = {
        "energy": partial(expert.atom_energies, params)
        if functions is None
        else partial(energies_of, functions, params),
        "energy and forces": partial(energies_and_partial_forces, expert, params)
        if functions is None
        else partial(with_partial_forces, functions, params),
    }
    found = []
    for name, fn in passes.items():
        shapes = products(jax.make_jaxpr(fn)(given).jaxpr)
        flops = sum(count * flops_of(*shape) for shape, count in shapes.items())
        alone = sum(count * product_seconds(*shape, arguments.repeats) for shape, count in shapes.items())
        cost = jax.jit(fn).lower(given).compile().cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        measured = seconds_of(fn, (given,), 3 * arguments.repeats)
        found.append(
            {
                "expert": expert.config["builder"],
                "pass": name,
                "rows": n_rows,
                "slots": int(rows.mask.shape[1]),
                "neighbours": float(
                    jnp.mean(
                        jnp.sum(rows.mask & (jnp.sum(rows.displacement**2, -1) < expert.cutoff**2), axis=1)
                    )
                ),
                "product_flops": float(flops) / n_rows,
                "flops": float(cost["flops"]) / n_rows,
                "bytes": float(cost["bytes accessed"]) / n_rows,
                "product_s": alone / n_rows,
                "memory_rate": rate,
                "memory_s": (memory := float(cost["bytes accessed"]) / rate) / n_rows,
                "measured_s": measured / n_rows,
                "reached": max(alone, memory) / measured,
                "parts": where_time_goes(fn, (given,), 5 * arguments.repeats),
            }
        )
        print(found[-1], flush=True)
    return found


def parts_of_step(expert: Expert, params, n_atoms: int, repeats: int) -> dict | None:
    """Seconds of nested programs of a step with every atom on an expert of sums; None for other experts."""
    functions = expert.neighbor_sums
    if functions is None:
        return None
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    position, edges = bench_mixture.crystal(n_atoms)
    n_atoms = len(position)
    species = np.full(n_atoms, expert.species.index(SYMBOL))
    alone = mm.regions.fixed(np.zeros(n_atoms, int), n_experts=1)
    displacement_fn, shift_fn = jax_md.space.periodic(edges)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn, edges, ((expert, params),), species, alone
    )
    step = harness.dynamics_step(mm.simulate.nve(shift_fn, bench_mixture.TIMESTEP_FS), energy_fn)
    state, neighbors = bench_mixture.start(position), neighbor_fn.allocate(jnp.asarray(position))
    images = nearest_images(edges, dtype=jnp.float32)

    def next_state(state, change):
        """Positions that depend on a result, so that the next call does."""
        return replace(state, position=state.position + 1e-9 * change)

    def rows(carry):
        state, neighbors = carry
        found = displacements(
            state.position, neighbors.centers[0], neighbors.rows_of_sums[0], images, 2 * expert.cutoff
        )
        return next_state(state, sum(jnp.sum(x, axis=1, keepdims=True) for x in found)), neighbors

    def energy(carry):
        state, neighbors = carry
        return next_state(state, energy_fn(state.position, neighbors)), neighbors

    def forces(carry):
        state, neighbors = carry
        return next_state(state, jax.grad(energy_fn)(state.position, neighbors)), neighbors

    cases = {
        "list check": lambda carry: (carry[0], carry[1].update(carry[0].position)),
        "rows": rows,
        "energy": energy,
        "forces": forces,
        "step": lambda carry: step(*carry),
    }
    compiled = {name: harness.Case(fn, (state, neighbors)) for name, fn in cases.items()}
    timings = harness.interleave(compiled, repeats=repeats, warmup=2)
    return {
        "expert": expert.config["builder"],
        "atoms": n_atoms,
        "slots": int(neighbors.rows_of_sums[0].shape[1]),
        "seconds": {name: t.median for name, t in timings.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path")
    parser.add_argument("--rows", type=int, default=64, help="rows of a chunk")
    parser.add_argument("--atoms", type=int, nargs="+", default=(8064, 250_000), help="of a step")
    parser.add_argument("--skin", type=float, default=0.4, help="Å, of the neighbour list")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="tiny experts")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(rows=8, repeats=1, atoms=(256,))
    model = harness.two_experts(arguments.checkpoint, tiny=arguments.smoke)
    rate = bandwidth(2**16 if arguments.smoke else 2**26, arguments.repeats)  # larger than every cache
    large = (64, 64) if arguments.smoke else (2048, 2048)
    peak = flops_of(large, large, (((1,), (0,)), ((), ()))) / product_seconds(
        large, large, (((1,), (0,)), ((), ())), arguments.repeats
    )
    print(f"bandwidth {1e-9 * rate:.0f} GB/s, large product {1e-9 * peak:.0f} GFLOP/s", flush=True)
    rows = [
        row
        for expert, params in zip(model.experts, model.params)
        for row in roofline(expert, params, arguments)
    ]
    steps = [
        found
        for n_atoms in arguments.atoms
        for expert, params in zip(model.experts, model.params)
        if (found := parts_of_step(expert, params, n_atoms, arguments.repeats))
    ]
    print(*steps, sep="\n")
    record = {
        "benchmark": "roofline",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",
        "checkpoint": Path(arguments.checkpoint).name,
        "bandwidth": rate,
        "peak_flops": peak,
        "rows": rows,
        "steps": steps,
    }
    harness.append(arguments.results, "roofline", record)


if __name__ == "__main__":
    main()
