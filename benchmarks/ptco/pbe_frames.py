"""Trajectories for PBE labels, in small cells: the cost of a frame grows with the cube of its atoms."""

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk
from ase.constraints import FixedLine
from ase.optimize import BFGS
from moves import (
    BOND,
    LATTICE,
    covered,
    covered_dynamics,
    dynamics,
    metal_dynamics,
    mover,
    named,
    slab,
    step_slab,
    strained_cell,
)

# Cells of CO on (111): repeat and number of CO.
SMALL_COVERAGES = [((2, 2, 3), 1), ((2, 3, 3), 1), ((2, 2, 4), 1), ((2, 3, 3), 2)]


def small_covered(rng, arguments) -> Iterator[list[Atoms]]:
    """Dynamics of one or two CO on slabs of three and four layers: candidates for `choose.py`."""
    calc = mover(arguments.model)
    for i in range(arguments.covered):
        size, n_co = SMALL_COVERAGES[i % len(SMALL_COVERAGES)]
        temperature = (300, 600, 900)[i // len(SMALL_COVERAGES) % 3]
        atoms = covered(slab("111", size, rng), n_co, rng)
        moved = covered_dynamics(
            atoms, calc, temperature, 2, rng, "slab-co", f"co-{temperature}K-s{arguments.seed}-{i}"
        )
        for frame in moved:
            frame.center(vacuum=6.0, axis=2)
        yield moved


def relaxed_on_sites(rng, arguments) -> Iterator[list[Atoms]]:
    """CO relaxed on each site of a p(2x2) cell of four and three layers, and one frame at 150 K.

    These frames determine the energy differences of the sites.
    """
    calc = mover(arguments.model)
    for i in range(arguments.sites):
        site, layers = ("fcc", "hcp", "bridge", "ontop")[i % 4], (4, 3)[i // 4 % 2]
        atoms = slab("111", (2, 2, layers), rng, fixed_bottom=True)
        add_adsorbate(
            atoms,
            Atoms("CO", [[0, 0, 0], [0, 0, BOND]]),
            {"ontop": 1.85, "bridge": 1.5}.get(site, 1.35),
            site,
        )
        atoms.center(vacuum=6.5, axis=2)
        fixed = atoms.constraints
        atoms.set_constraint([*fixed, FixedLine(len(atoms) - 2, [0, 0, 1])])  # C moves along the normal only
        atoms.calc = calc
        BFGS(atoms, logfile=None).run(fmax=0.03, steps=60)
        relaxed = atoms.copy()
        atoms.set_constraint(fixed)
        moved = dynamics(atoms, calc, 150, 1, rng, timestep_fs=1.5, first=66, every=50)
        frames = [relaxed, *(a.copy() for a in moved)]
        yield [
            named(a, "slab-co", f"site-{site}-s{arguments.seed}-{i}", step) for step, a in enumerate(frames)
        ]


def pbe_frames(rng, arguments) -> Iterator[list[Atoms]]:
    """Strained crystals, vacancies, clean slabs and CO in vacuum."""
    tag = f"s{arguments.seed}"
    for i in range(arguments.bulk):
        cell = strained_cell(rng, volume=0.04, shear=0.03, rattle=0.15)
        yield [named(cell, "bulk-strained", f"bulk-{tag}-{i}")]
    for i in range(arguments.vacancy):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.99, 1.02)) * (2, 1, 1)
        if i % 2:
            cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.99, 1.02)) * (2, 2, 1)
        del cell[int(rng.integers(len(cell)))]
        temperature = (300, 600, 900)[i % 3]
        yield metal_dynamics(cell, temperature, 1, rng, "bulk-vacancy", f"vacancy-{temperature}K-{tag}-{i}")
    for i in range(arguments.clean):
        temperature = (300, 600, 900, 1200)[i % 4]
        size = ((2, 2, 3), (2, 2, 4), (2, 3, 3))[i % 3]
        atoms = slab("111", size, rng, fixed_bottom=i % 2 == 0)
        atoms.center(vacuum=7.0, axis=2)
        yield metal_dynamics(atoms, temperature, 1, rng, "slab-clean", f"clean-{temperature}K-{tag}-{i}")
    for i in range(arguments.gas):
        bond = np.linspace(1.02, 1.34, max(arguments.gas, 2))[i]
        molecule = Atoms("CO", [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0 + bond]], cell=[10.0, 10.0, 11.0])
        yield [named(molecule, "gas-co", "gas-scan", i)]


def small_test_families(rng, calc) -> Iterator[list[Atoms]]:
    """The kinds of `test_families` in small cells, four trajectories of each with one frame.

    Crystals under single strains are added, whose stresses give the elastic constants.
    """
    for part in ("xx", "yz"):
        for size in (-0.01, 0.01):
            strain = np.zeros((3, 3))
            strain["xyz".index(part[0]), "xyz".index(part[1])] = size
            cell = bulk("Pt", cubic=True, a=LATTICE)
            cell.set_cell(cell.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
            yield [named(cell, "test-elastic", f"elastic-{part}{size:+}")]
    for i in range(4):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(1.0, 1.03)) * (2, 1, 1)
        yield metal_dynamics(cell, 1500, 1, rng, "test-hotter-bulk", f"hotter-bulk-{i}")
        step = step_slab(((3, 1, 1), (2, 2, 1))[i % 2], 3)
        for kind, atoms, n_co, temperature in (
            ("hotter-co", slab("111", (2, 2, 3), rng), 1, 1200),
            ("unseen-coverage", slab("111", (2, 2, 3), rng), 2, 500),
            ("unseen-step", step, 1, 500),
            ("larger-cell", slab("111", (3, 3, 3), rng), 1, 500),
        ):
            moved = covered_dynamics(
                covered(atoms, n_co, rng), calc, temperature, 1, rng, f"test-{kind}", f"{kind}-{i}"
            )
            for frame in moved[1:]:
                frame.center(vacuum=6.0, axis=2)
                yield [frame]
