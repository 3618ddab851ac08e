"""The ASE calculator: its overhead, a barrier and phonons.

    python benchmarks/bench_ase.py [--checkpoint ptco-small] [--rounds 15] [--smoke]

Overhead: `get_forces` after atoms have moved, compared with the mixture's jitted list
update, energy and gradient, in alternation. Float32, a rattled crystal with a static
region of a twentieth of the atoms, or a sphere that follows an atom. The calculator
also computes energies and stresses of atoms.
Barrier: CO from the fcc site to on top, climbing-image NEB of ASE. Modes: a crystal
whose layers alternate between the experts, ASE's phonons at the zone centre of the cubic
cell. Both are computed with the mixture and with the expensive expert alone.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.build import add_adsorbate, bulk, fcc111
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from ase.phonons import Phonons
from jax_md import space

import moe_md as mm
from moe_md.analysis.bulk import relax_crystal
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.selections import by_layer


def overhead(model, lattice_constant: float, repeat: int, rounds: int) -> list[dict]:
    """Times of calculator and mixture, in alternation, for a static and a dynamic region."""
    atoms = bulk("Pt", a=lattice_constant, cubic=True) * (repeat, repeat, repeat)
    start, rng = atoms.positions.copy(), np.random.default_rng(0)
    box = atoms.cell.lengths().astype(np.float32)
    start += 0.05 * rng.standard_normal(start.shape)
    species = np.full(len(atoms), model.experts[0].species.index("Pt"))
    rank = np.argsort(np.argsort(start[:, 2]))
    found = []
    for name, region in (
        ("fixed", mm.regions.fixed(np.where(rank >= 0.95 * len(atoms), 0, 1))),
        ("around an atom", mm.regions.around([0], 5.0, 2.0)),
    ):
        neighbor_fn, energy_fn = mm.mixture_neighbor_list(
            space.periodic(box)[0], box, model.potentials, species, region
        )
        neighbors = neighbor_fn.allocate(jnp.asarray(start, jnp.float32))

        @jax.jit
        def step(R, neighbors, energy_fn=energy_fn):
            neighbors = neighbors.update(R)
            return jax.value_and_grad(energy_fn)(R, neighbors)

        atoms.positions, atoms.calc = start, MixtureCalculator(model, region, dtype="float32")
        seconds: dict[str, list[float]] = {"mixture": [], "calculator": []}
        for turn in range(-2, rounds):
            atoms.positions = start + 0.01 * rng.standard_normal(start.shape)
            R = jnp.asarray(atoms.positions, jnp.float32)
            for who in list(seconds)[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                if who == "mixture":
                    _, slope = jax.block_until_ready(step(R, neighbors))
                else:
                    forces = atoms.get_forces()
                if turn >= 0:
                    seconds[who].append(time.perf_counter() - began)
        found.append(
            {
                "region": name,
                "atoms": len(atoms),
                "seconds": {who: harness.timing(spent)._asdict() for who, spent in seconds.items()},
                "overhead": float(
                    np.median(np.array(seconds["calculator"]) / np.array(seconds["mixture"])) - 1.0
                ),
                "force_difference_meV_per_A": float(1e3 * np.abs(forces + np.asarray(slope)).max()),
            }
        )
    return found


def band(make_calculator, lattice_constant: float, size, n_images: int, fmax: float, steps: int) -> dict:
    """Barrier and reaction energy of CO from fcc to on top, eV; the lowest two layers are fixed."""
    began, ends = time.perf_counter(), []
    for site, height in (("fcc", 1.35), ("ontop", 1.85)):
        atoms = fcc111("Pt", size, a=lattice_constant, vacuum=7.0)
        add_adsorbate(atoms, "C", height, site)
        add_adsorbate(atoms, "O", height + 1.16, site)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > size[2] - 2))
        atoms.calc = make_calculator()
        FIRE(atoms, logfile=None).run(fmax=fmax / 2, steps=steps)
        ends.append(atoms)
    images = [ends[0], *(ends[0].copy() for _ in range(n_images)), ends[1]]
    for image in images[1:-1]:
        image.calc = make_calculator()
    neb, converged = NEB(images, k=0.1, method="improvedtangent"), False
    neb.interpolate()
    for neb.climb in (False, True):
        converged = FIRE(neb, logfile=None).run(fmax=fmax, steps=steps)
    energies = np.array([image.get_potential_energy() for image in images])
    return {
        "barrier_eV": float(energies.max() - energies[0]),
        "reaction_eV": float(energies[-1] - energies[0]),
        "path_eV": (energies - energies[0]).tolist(),
        "converged": bool(converged),
        "atoms": len(images[0]),
        "seconds": time.perf_counter() - began,
    }


def modes(calculator, lattice_constant: float, repeat: int) -> dict:
    """Frequencies, THz, at the zone centre of the cubic cell: Γ and X of the primitive cell."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        phonons = Phonons(
            bulk("Pt", a=lattice_constant, cubic=True),
            calculator,
            supercell=(repeat,) * 3,
            delta=0.01,
            name=f"{folder}/phonon",
        )
        phonons.run()
        phonons.read(acoustic=True)
        energies = phonons.band_structure(np.zeros((1, 3)), verbose=False)[0]
    thz = np.sort(energies) * units._e / units._hplanck / 1e12
    return {"THz": thz[3:].tolist(), "atoms": 4 * repeat**3, "seconds": time.perf_counter() - began}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="ptco-small")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--repeat",
        type=int,
        default=8,
        help="cubic cells along each edge of the crystal that is timed (default 8: 2,048 atoms)",
    )
    parser.add_argument("--smoke", action="store_true", help="small and short, to test that it runs")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    arguments = parser.parse_args(arguments)
    size, images, fmax, steps, repeat = (3, 3, 4), 5, 0.05, 300, 3
    if arguments.smoke:
        arguments.rounds, arguments.repeat = 1, 4
        size, images, fmax, steps, repeat = (2, 2, 3), 1, 1.0, 1, 1
    model = mm.load(arguments.checkpoint)
    lattice_constant = (4 * relax_crystal(*model.cheap, bulk("Pt")).volume) ** (1 / 3)
    times = overhead(model, lattice_constant, arguments.repeat, arguments.rounds)
    # CO counts as two layers. The lowest layer, without CO in its cutoff, is the cheap expert's.
    calculators = {
        "expensive": lambda: MixtureCalculator(model, 0),
        "mixture": lambda: MixtureCalculator(model, by_layer(size[2] + 1)),
    }
    bands = {
        name: band(make_calculator, lattice_constant, size, images, fmax, steps)
        for name, make_calculator in calculators.items()
    }
    layered = partial(alternate_layers, lattice_constant=lattice_constant)
    frequencies = {
        name: modes(MixtureCalculator(model, region), lattice_constant, repeat)
        for name, region in (("mixture", layered), ("expensive", 0), ("cheap", 1))
    }
    record = {
        "benchmark": "ase",
        "smoke": arguments.smoke,
        **harness.environment(),
        "dtype": "float32",
        "checkpoint": arguments.checkpoint,
        "overhead": times,
        "band": {**bands, "images": images, "fmax": fmax},
        "modes": frequencies,
    }
    harness.append(arguments.results, "ase", record)
    print(describe(record))


def alternate_layers(atoms, lattice_constant: float) -> np.ndarray:
    """`[n_atoms]` int, the expert of each (100) layer: 0 and 1 in alternation along z."""
    return (np.round(2 * atoms.positions[:, 2] / lattice_constant) % 2).astype(int)


def describe(record: dict) -> str:
    """The results as lines of text."""
    lines = []
    for case in record["overhead"]:
        ms = {who: 1e3 * t["median"] for who, t in case["seconds"].items()}
        lines.append(
            f"{case['atoms']} atoms, {case['region']}: mixture {ms['mixture']:.1f} ms, "
            f"calculator {ms['calculator']:.1f} ms, {case['overhead']:+.0%}"
        )
    for name in ("expensive", "mixture"):
        path = record["band"][name]
        lines.append(
            f"CO from fcc to on top, {name}: barrier {path['barrier_eV']:.3f} eV, "
            f"reaction {path['reaction_eV']:+.3f} eV, {path['seconds']:.0f} s"
        )
    for name, m in record["modes"].items():
        frequencies = " ".join(f"{x:.2f}" for x in m["THz"])
        lines.append(f"modes of Pt, {name}: {frequencies} THz, {m['seconds']:.0f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
