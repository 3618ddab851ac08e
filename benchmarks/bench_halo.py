"""What does a halo cost for an expert that passes messages?

    python benchmarks/bench_halo.py [--rounds 5] [--layers 2] [--smoke]

A Pt(111) slab whose top layers belong to jax-md's NequIP and the rest to a
power spectrum, random parameters: energies and forces of the mixture against
those of NequIP on all atoms. Rows of the halo cost as much as owned rows. With f the
share of owned and h that of halo rows, the bound is S_max = 1 / (f + h + (1 - f) / r),
where r is the cost of an atom on NequIP, with all atoms on it, over that of an atom on
the power spectrum. Results are appended to `benchmarks/results/halo.jsonl`. Tests
check that the mixture is exact.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import fcc111
from jax_md import space

import moe_md as mm

CUTOFF, FEATURES = 4.0, "16x0e + 8x1o + 4x2e"


def slab(columns: int, layers: int) -> Atoms:
    """A rattled Pt(111) slab."""
    atoms = fcc111("Pt", (columns, columns, layers), a=3.98, vacuum=6.0, orthogonal=True)
    atoms.rattle(0.05, seed=0)
    return atoms


def mixture_cases(atoms: Atoms, num_layers: int) -> tuple[dict[str, harness.Case], dict[str, list[int]]]:
    """Programs for all atoms on NequIP, the mixture, all on the power spectrum; their owned and halo rows."""
    n_atoms, top = len(atoms), np.unique(np.round(atoms.positions[:, 2], 0))[-1]
    box = atoms.cell.lengths().astype(np.float32)
    displacement_fn, _ = space.periodic(box)
    experts = (
        mm.experts.nequip(
            ("Pt",), CUTOFF, num_layers=num_layers, hidden_irreps=FEATURES, avg_num_neighbors=18.0
        ),
        mm.experts.power_spectrum(("Pt",), CUTOFF, avg_num_neighbors=18.0),
    )
    params = [e.init(jax.random.key(k)) for k, e in enumerate(experts)]
    position = jnp.asarray(atoms.get_positions(wrap=True), jnp.float32)
    owners = {
        "expensive": np.zeros(n_atoms, int),
        "mixture": (np.asarray(atoms.positions[:, 2]) < top - 1.0).astype(int),
        "cheap": np.ones(n_atoms, int),
    }
    cases, rows = {}, {}
    for name, owner in owners.items():
        neighbor_fn, energy_fn = mm.mixture_neighbor_list(
            displacement_fn,
            box,
            mm.experts.potentials(experts, params),
            np.zeros(n_atoms, int),
            mm.regions.fixed(owner),
        )
        neighbors = neighbor_fn.allocate(position)
        gradient = jax.grad(energy_fn)

        def step(carry, gradient=gradient):
            R, neighbors = carry
            neighbors = neighbors.update(R)
            # Positions change at every call, within the skin.
            return R + 1e-6 * jnp.tanh(gradient(R, neighbors)), neighbors

        cases[name] = harness.Case(step, (position, neighbors))
        rows[name] = [int(np.sum(np.asarray(x) < n_atoms)) for x in (neighbors.centers[0], neighbors.halo[0])]
    return cases, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2, help="message-passing layers of NequIP (default 2)")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--slab-layers", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="a small slab and one round")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        arguments.columns, arguments.slab_layers, arguments.rounds = 4, 4, 1
    atoms = slab(arguments.columns, arguments.slab_layers)
    n_atoms = len(atoms)
    cases, rows = mixture_cases(atoms, arguments.layers)
    timings = harness.interleave(cases, repeats=arguments.rounds)
    seconds = {name: t.median for name, t in timings.items()}
    r = seconds["expensive"] / seconds["cheap"]
    f, h = (n / n_atoms for n in rows["mixture"])
    bound = 1 / (f + h + (1 - f) / r)
    record = {
        "benchmark": "halo",
        "smoke": arguments.smoke,
        **harness.environment(),
        "dtype": "float32",
        "atoms": n_atoms,
        "layers": arguments.layers,
        "f": f,
        "halo": h,
        "r": r,
        "seconds": {name: t._asdict() for name, t in timings.items()},
        "speedup": seconds["expensive"] / seconds["mixture"],
        "s_max": bound,
        "s_max_without_halo": 1 / (f + (1 - f) / r),
    }
    harness.append(arguments.results, "halo", record)
    print(
        f"{n_atoms} atoms, f = {f:.3f}, halo {h:.3f} ({h / f:.1f} rows per owned row), r = {r:.0f}: "
        f"{record['speedup']:.2f} times faster than all-NequIP, bound {bound:.2f}, "
        f"{record['s_max_without_halo']:.2f} without a halo"
    )


if __name__ == "__main__":
    main()
