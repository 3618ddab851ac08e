"""Time per atom and step, and memory per atom, in crystals of several sizes.

The mixture of `bench_mixture.py`, with the upper atoms on the expensive expert, in
crystals of several sizes, in a bar as narrow as the cutoff allows, and in a crystal with
randomly numbered atoms. Chunks of velocity Verlet at 300 K; neighbour lists are checked in
every step and rebuilt where atoms have moved, so rebuilds are part of the time. A rebuild
is also timed alone. The number of rebuilds depends on the fastest atoms and cannot be
measured in a short chunk; it is counted in a longer run of the smallest crystal.

Memory is that of a compiled chunk as XLA reports it: arguments, results and temporary
arrays. All grow with the number of atoms; the chunk of rows has a constant size.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from bench_mixture import (
    SYMBOL,
    TEMPERATURE_K,
    TIMESTEP_FS,
    cells_for,
    crystal_of,
    rebuild_case,
    start,
    upper_share,
)
from jax_md import space

import moe_md as mm

NARROW = 3  # cubic cells: the box must be wider than two cutoffs


class System(NamedTuple):
    """A crystal to run."""

    name: str
    cells: tuple[int, int, int]
    shuffled: bool = False


def systems(sizes: list[int]) -> list[System]:
    """Crystals of about these sizes, a bar of the smallest size, and the second one shuffled."""
    found = [System("crystal", cells_for(n)) for n in sorted(sizes)]
    bar = System("bar", (NARROW, NARROW, round(min(sizes) / 4 / NARROW**2)))
    return [
        *found,
        bar,
        System("crystal, atoms shuffled", found[min(1, len(found) - 1)].cells, shuffled=True),
    ]


class Chunk(harness.Case):
    """A program of `n_steps` steps of dynamics with the carry `(state, neighbors, n_rebuilds)`."""

    def __init__(self, system: System, model, share: float, n_steps: int, chunk_size: int):
        position, edges = crystal_of(system.cells)
        if system.shuffled:
            position = position[np.random.default_rng(1).permutation(len(position))]
        self.edges, self.n_steps, self.n_atoms = edges, n_steps, len(position)
        species = np.full(len(position), model.experts[0].species.index(SYMBOL))
        displacement_fn, shift_fn = space.periodic(edges)
        neighbor_fn, energy_fn = mm.mixture_neighbor_list(
            displacement_fn,
            edges,
            model.potentials[:2],
            species,
            upper_share(position, share),
            chunk_size=chunk_size,
        )
        advance = harness.dynamics_step(mm.simulate.nve(shift_fn, TIMESTEP_FS), energy_fn)

        def step(_, carry):
            state, neighbors, rebuilds = carry
            state, new = advance(state, neighbors)
            moved = jnp.any(new.list.reference_position != neighbors.list.reference_position)
            return state, new, rebuilds + moved

        neighbors = neighbor_fn.allocate(jnp.asarray(position))
        super().__init__(
            lambda carry: jax.lax.fori_loop(0, n_steps, step, carry),
            (start(position), neighbors, jnp.zeros((), int)),
        )

    @property
    def rebuilds(self) -> int:
        return int(self.state[2])

    @property
    def bytes(self) -> int | None:
        """Memory of the program; None where XLA does not report it."""
        m = self._call.memory_analysis()
        return None if m is None else m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

    def check(self) -> None:
        state, neighbors, _ = self.state
        if bool(neighbors.did_buffer_overflow) or not bool(jnp.isfinite(state.position).all()):
            raise RuntimeError(
                f"{self.n_atoms} atoms: lists overflowed or positions are not finite; the time is not valid."
            )


def measure(arguments) -> dict:
    """The record of one run of this benchmark."""
    model = harness.two_experts(arguments.checkpoint, tiny=arguments.tiny)
    make = lambda system, n_steps: Chunk(system, model, arguments.share, n_steps, arguments.chunk_size)  # noqa: E731
    found = systems(arguments.atoms)
    chunks = {}
    for system in found:
        chunks[system] = make(system, arguments.steps)
        print(
            f"{system.name}, {chunks[system].n_atoms:,} atoms: "
            f"compiled in {chunks[system].compile_seconds:.1f} s",
            flush=True,
        )
    timings = harness.interleave(chunks, repeats=arguments.repeats)
    counted = {system: chunk.rebuilds for system, chunk in chunks.items()}
    rebuilt = harness.interleave(
        {s: rebuild_case(c, c.edges) for s, c in chunks.items()}, repeats=max(3, arguments.repeats)
    )
    long = make(found[0], arguments.long_steps)
    long.advance()
    for chunk in (*chunks.values(), long):
        chunk.check()
    interval = arguments.long_steps / max(1, long.rebuilds)
    rows = []
    for system, chunk in chunks.items():
        t = timings[system]
        per_step, rebuild = t.median / arguments.steps, rebuilt[system].median
        rows.append(
            {
                "name": system.name,
                "cells": system.cells,
                "atoms": chunk.n_atoms,
                "step_s": per_step,
                "quartiles_s": [t.lower / arguments.steps, t.upper / arguments.steps],
                "us_per_atom": 1e6 * per_step / chunk.n_atoms,
                "steps": arguments.steps * (arguments.repeats + 1),
                "rebuilds": counted[system],
                "rebuild_s": rebuild,
                "rebuild_share": rebuild / (interval * per_step),
                "bytes_per_atom": None if chunk.bytes is None else chunk.bytes / chunk.n_atoms,
                "compile_s": round(chunk.compile_seconds, 2),
            }
        )
    return {
        "benchmark": "scale",
        **harness.environment(),
        "smoke": arguments.smoke,
        "random_params": arguments.tiny,
        "experts": [e.config for e in model.experts[:2]],
        "dtype": "float32",
        "f": arguments.share,
        "temperature_K": TEMPERATURE_K,
        "chunk_size": arguments.chunk_size,
        "repeats": arguments.repeats,
        "long_steps": arguments.long_steps,
        "long_rebuilds": long.rebuilds,
        "rows": rows,
    }


def describe(record: dict) -> str:
    """The results as lines of text."""
    lines = [
        f"f = {record['f']:g}; the smallest rebuilt its list {record['long_rebuilds']} times in "
        f"{record['long_steps']} steps"
    ]
    for row in record["rows"]:
        memory = "unknown" if row["bytes_per_atom"] is None else f"{row['bytes_per_atom']:,.0f}"
        low, high = (1e6 * t / row["atoms"] for t in row["quartiles_s"])
        lines.append(
            f"{row['atoms']:8,d} atoms  {row['name']:24s} {row['us_per_atom']:7.2f} µs per atom and step "
            f"({low:.2f} to {high:.2f}), "
            f"{row['rebuilds']} rebuilds in {row['steps']} steps of "
            f"{1e6 * row['rebuild_s'] / row['atoms']:.2f} µs per atom each: "
            f"{row['rebuild_share']:.1%} of the time; {memory} bytes per atom"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="ptco", help="name or path")
    parser.add_argument("--atoms", type=int, nargs="+", default=(8064, 32000, 250000))
    parser.add_argument("--share", type=float, default=0.05, help="fraction of atoms on the expensive expert")
    parser.add_argument("--steps", type=int, default=10, help="steps of a chunk")
    parser.add_argument("--long-steps", type=int, default=400, help="over which rebuilds are counted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=64, help="rows computed at a time")
    parser.add_argument("--tiny", action="store_true", help="tiny experts with random parameters")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a few hundred atoms, tiny experts, two repeats")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(atoms=(256, 500), steps=2, long_steps=4, repeats=2, tiny=True)
    record = measure(arguments)
    print(describe(record))
    harness.append(arguments.results, "scale", record)


if __name__ == "__main__":
    main()
