"""Trajectories for labels of a foundation model: many kinds of structures, 1 to 100 atoms."""

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk
from moves import (
    BOND,
    CLOSEST,
    LATTICE,
    covered,
    covered_dynamics,
    height_above,
    metal_dynamics,
    named,
    sane,
    slab,
    step_slab,
    strained_cell,
)

# Cells of CO on (111): repeat and number of CO, from 1/16 to 2/3 of a monolayer.
COVERAGES = [
    ((4, 4, 3), 1),
    ((3, 3, 4), 1),
    ((2, 2, 4), 1),
    ((2, 3, 4), 2),
    ((3, 3, 3), 3),
    ((2, 2, 4), 2),
    ((2, 3, 4), 4),
    ((3, 3, 3), 6),
]


def fm_bulk(rng, share: float) -> Iterator[list[Atoms]]:
    """Crystals: along the equation of state, strained, hot, with vacancies and interstitials."""
    for i in range(_scaled(60, share)):
        cell = strained_cell(rng, volume=0.08, shear=0.02 * (i % 2), rattle=0.0)[:1]
        cell.set_cell(np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ cell.cell.array)
        yield [named(cell, "bulk-eos", f"eos-{i}")]
    for i in range(_scaled(220, share)):
        yield [
            named(strained_cell(rng, volume=0.05, shear=0.04, rattle=0.25), "bulk-strained", f"strained-{i}")
        ]
    for i in range(_scaled(60, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.97, 1.03)) * 2
        temperature = (300, 500, 700, 900, 1200)[i % 5]
        yield metal_dynamics(cell, temperature, 4, rng, "bulk-hot", f"hot-{temperature}K-{i}")
    for i in range(_scaled(40, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.98, 1.02)) * 2
        kind, temperature = "bulk-vacancy", (300, 600, 900, 1200)[i % 4]
        if i % 4 == 3:
            kind, temperature = "bulk-interstitial", rng.choice([300, 600])
            cell.append("Pt")
            cell.positions[-1] = LATTICE * np.array([0.5, 0.5, 0.5]) + 0.1 * rng.normal(size=3)
        else:
            del cell[[int(k) for k in rng.choice(32, size=1 + (i % 8 == 5), replace=False)]]
        yield metal_dynamics(cell, temperature, 3, rng, kind, f"{kind}-{i}")


def fm_slabs(rng, share: float) -> Iterator[list[Atoms]]:
    """Clean and stepped surfaces to 1200 K, with adatoms."""
    for i in range(_scaled(80, share)):
        facet = ("111", "100", "111", "110", "211")[i % 5]
        size = [3 if facet == "211" else 2, int(rng.integers(2, 4)), int(rng.integers(3, 6))]
        temperature = (300, 600, 900, 1200)[i % 4]
        atoms = slab(facet, size, rng, fixed_bottom=bool(rng.random() < 0.3))
        yield metal_dynamics(atoms, temperature, 3, rng, f"slab-{facet}", f"slab-{facet}-{temperature}K-{i}")
    for i in range(_scaled(30, share)):
        facet, site = (("111", "fcc"), ("100", "hollow"), ("110", "hollow"), ("111", "hcp"))[i % 4]
        atoms = slab(facet, (3, 3, 3), rng)
        add_adsorbate(atoms, "Pt", {"111": 2.2, "100": 1.95, "110": 1.4}[facet], site)
        yield metal_dynamics(atoms, (300, 600, 900)[i % 3], 2, rng, f"slab-{facet}-adatom", f"adatom-{i}")


def fm_covered(rng, share: float, calc) -> Iterator[list[Atoms]]:
    """Dynamics of CO on every facet, at many coverages."""
    for i in range(_scaled(112, share)):
        size, n_co = COVERAGES[i % len(COVERAGES)]
        temperature = (300, 450, 600, 900)[i // len(COVERAGES) % 4]
        atoms = covered(slab("111", size, rng), n_co, rng)
        yield covered_dynamics(atoms, calc, temperature, 4, rng, "co-111", f"co-111-{temperature}K-{i}")
    for i in range(_scaled(48, share)):
        facet = ("100", "110", "211")[i % 3]
        atoms = covered(slab(facet, (3, 2, 3 if facet == "211" else 4), rng), 1 + i // 3 % 3, rng)
        temperature = (300, 600)[i % 2]
        yield covered_dynamics(
            atoms, calc, temperature, 3, rng, f"co-{facet}", f"co-{facet}-{temperature}K-{i}"
        )


def fm_molecules(rng, share: float) -> Iterator[list[Atoms]]:
    """CO at distances from a slab, alone, and in pairs."""
    for i in range(_scaled(24, share)):
        clean = slab("111" if i % 3 else "100", (2, 2, 4), rng)
        clean.positions += rng.normal(size=clean.positions.shape) * 0.08
        place, axis = rng.random(2) @ clean.cell.array[:2], rng.normal(size=3)
        frames = []
        for step, gap in enumerate(np.sort(rng.uniform(1.7, 8.0, 6))):
            atoms = clean.copy()
            carbon = place.copy()
            carbon[2] = height_above(atoms, carbon, gap) if gap < 3 else clean.positions[:, 2].max() + gap
            direction = axis + 2.0 * rng.normal(size=3) * min(1.0, gap / 8.0)
            atoms += Atoms(
                "CO", [carbon, carbon + rng.normal(BOND, 0.04) * direction / np.linalg.norm(direction)]
            )
            atoms.set_cell(atoms.cell.array + np.diag([0, 0, 8.0]))
            if np.isfinite(carbon[2]) and sane(atoms):
                frames.append(named(atoms, "co-approach", f"approach-{i}", step))
        yield frames
    for i, bond in enumerate(np.linspace(1.0, 1.6, _scaled(25, share))):
        yield [named(_in_vacuum(Atoms("CO", [[0, 0, 0], [0, 0, bond]])), "gas-co", "gas-scan", i)]
    for i in range(_scaled(60, share)):
        pair = Atoms("CO", [[0, 0, 0], [0, 0, rng.normal(BOND, 0.04)]])
        axis, bond = rng.normal(size=3), rng.normal(BOND, 0.04)
        away = rng.normal(size=3)
        start = away / np.linalg.norm(away) * rng.uniform(1.8, 5.0)
        pair += Atoms("CO", [start, start + bond * axis / np.linalg.norm(axis)])
        if sane(pair, 0.9 * CLOSEST + 0.1):
            yield [named(_in_vacuum(pair), "gas-pair", f"pair-{i}")]


def fm_contacts(rng, share: float) -> Iterator[list[Atoms]]:
    """Compressed and strongly rattled structures, for short interatomic distances."""
    for i in range(_scaled(120, share)):
        if i % 3 == 0:
            atoms = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(0.88, 1.02)) * (2, 2, 1)
        else:
            atoms = covered(slab("111", (2, 2, 3), rng), 1 + i % 2, rng, apart=2.0)
        if atoms is None:
            continue
        for _ in range(20):
            moved = atoms.copy()
            size = np.where(np.array(atoms.symbols) == "Pt", 0.35, 0.15) * rng.uniform(0.3, 1.0)
            moved.positions += rng.normal(size=moved.positions.shape) * size[:, None]
            if sane(moved, 0.6):
                yield [named(moved, "contact", f"contact-{i}")]
                break


def test_families(rng, share: float, calc) -> Iterator[list[Atoms]]:
    """Test kinds, absent from the training frames: larger, hotter, another step, another coverage."""
    for i in range(_scaled(8, share)):
        atoms = covered(slab("111", (4, 4, 5), rng), 4, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-larger-cell", f"larger-{i}")[1:]
    for i in range(_scaled(8, share)):
        cell = bulk("Pt", cubic=True, a=LATTICE * rng.uniform(1.0, 1.03)) * (3, 2, 2)
        yield metal_dynamics(cell, 1500, 3, rng, "test-hotter-bulk", f"hotter-bulk-{i}")
        atoms = covered(slab("111", (3, 3, 4), rng), 2, rng)
        yield covered_dynamics(atoms, calc, 1200, 3, rng, "test-hotter-co", f"hotter-co-{i}")[1:]
    for i in range(_scaled(8, share)):
        clean = step_slab(((3, 3, 2), (5, 3, 3), (3, 1, 1), (2, 2, 1))[i % 4], (2, 2, 3, 3)[i % 4])
        atoms = covered(clean, 1 + i % 2, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-unseen-step", f"step-{i}")[1:]
    for i in range(_scaled(8, share)):
        atoms = covered(slab("111", (3, 3, 4), rng), 4, rng)
        yield covered_dynamics(atoms, calc, 500, 3, rng, "test-unseen-coverage", f"coverage-{i}")[1:]


def _in_vacuum(molecules: Atoms) -> Atoms:
    molecules.center(vacuum=5.0)
    molecules.pbc = False
    return molecules


def _scaled(count: int, share: float) -> int:
    return max(1, round(share * count))
