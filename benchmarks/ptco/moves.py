"""Structures of Pt and CO, and the dynamics and random moves that distort them.

Metal moves under ASE's EMT, metal with CO under a pair of moe_md, whose expensive expert
owns every atom. Labels never come from the potential that moved the atoms.
"""

from collections.abc import Iterator

import numpy as np
from ase import Atoms, units
from ase.build import bulk, surface
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list

from moe_md.data.structures import FACETS

LATTICE = 3.98  # Å, lattice constant of PBE as in label.py; that of the foundation model is 3.977
CLOSEST = 0.68  # smallest distance, in sums of two covalent radii; C-O at 1.0 Å has 0.70
BOND = 1.15  # Å, length of C-O


def sane(atoms: Atoms, closest: float = CLOSEST) -> bool:
    """Whether no two atoms are closer than `closest` times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    i, j, d = neighbor_list("ijd", atoms, 2 * closest * radii.max())
    return bool(np.all(np.isfinite(atoms.positions))) and bool(np.all(d > closest * (radii[i] + radii[j])))


def named(atoms: Atoms, kind: str, origin: str, step: int = 0) -> Atoms:
    """A frame without velocities, constraints and calculator, rounded for short files."""
    frame = Atoms(atoms.numbers, atoms.positions.round(4), cell=atoms.cell.array.round(6), pbc=atoms.pbc)
    frame.info = {"kind": kind, "origin": origin, "step": step}
    return frame


def dynamics(
    atoms: Atoms, calc, temperature_K: float, count: int, rng, *, timestep_fs: float, first: int, every: int
) -> Iterator[Atoms]:
    """Snapshots of Langevin dynamics, until one is not `sane`.

    `first` steps precede the first interval, and `every` steps each of at most `count` snapshots.
    """
    atoms = atoms.copy()
    atoms.calc = calc
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature_K, rng=rng)
    md = Langevin(
        atoms, timestep_fs * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=rng
    )
    md.run(first)
    for _ in range(count):
        md.run(every)
        if not sane(atoms):
            return
        yield atoms


def metal_dynamics(
    atoms: Atoms, temperature_K: float, count: int, rng, kind: str, origin: str
) -> list[Atoms]:
    """Snapshots under EMT, every 100 fs after 200 fs."""
    moved = dynamics(atoms, EMT(), temperature_K, count, rng, timestep_fs=4.0, first=50, every=25)
    return [named(a, kind, origin, step) for step, a in enumerate(moved)]


def slab(facet: str, size, rng, *, fixed_bottom: bool = False) -> Atoms:
    """A slab of a facet, strained by up to 1 % in its plane."""
    atoms = FACETS[facet]("Pt", tuple(size), a=LATTICE * rng.uniform(0.99, 1.01), vacuum=8.0)
    return _as_slab(atoms, fixed_bottom)


def step_slab(indices, layers: int) -> Atoms:
    """A slab of any surface of the crystal."""
    return _as_slab(surface(bulk("Pt", cubic=True, a=LATTICE), indices, layers, vacuum=8.0), False)


def _as_slab(atoms: Atoms, fixed_bottom: bool) -> Atoms:
    atoms.pbc = (True, True, False)
    if fixed_bottom:
        z = atoms.positions[:, 2]
        atoms.set_constraint(FixAtoms(mask=z < z.min() + 0.5))
    return atoms


def place_co(
    atoms: Atoms, rng, *, gap: tuple[float, float], max_tilt: float = 40.0, apart: float = 2.4
) -> bool:
    """Add one CO at a random place; False where none fits.

    Args:
        atoms: the slab, changed in place.
        rng: random number generator.
        gap: Å, range of the distance from C to the nearest metal atom.
        max_tilt: degrees, largest angle between CO and the surface normal.
        apart: Å, smallest distance of C from other C and O.
    """
    tilt, turn = np.deg2rad(rng.uniform(0, max_tilt)), rng.uniform(0, 2 * np.pi)
    axis = np.array([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])
    bond, distance = BOND + rng.normal() * 0.03, rng.uniform(*gap)
    for _ in range(50):
        carbon = rng.random(2) @ atoms.cell.array[:2]
        carbon[2] = height_above(atoms, carbon, distance)
        if not np.isfinite(carbon[2]):
            continue
        molecule = Atoms("CO", [carbon, carbon + bond * axis])
        trial = atoms + molecule
        others = [k for k, s in enumerate(atoms.symbols) if s in "CO"]
        free = not others or trial.get_distances(len(atoms), others, mic=True).min() > apart
        if free and sane(trial, 0.75):
            atoms.extend(molecule)
            return True
    return False


def height_above(atoms: Atoms, place: np.ndarray, gap: float) -> float:
    """Height (z, Å) at the x and y of `place` at which the nearest metal atom is at distance `gap`.

    Minus infinity where no metal atom is within that distance sideways.
    """
    metal = atoms[[a.index for a in atoms if a.symbol == "Pt"]]
    from_place = np.concatenate(
        [
            metal.positions + i * atoms.cell.array[0] + j * atoms.cell.array[1] - place
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
    )
    aside = np.hypot(from_place[:, 0], from_place[:, 1])
    under = aside < gap
    return float(
        np.max(place[2] + from_place[under, 2] + np.sqrt(gap**2 - aside[under] ** 2), initial=-np.inf)
    )


def covered(facet_slab: Atoms, n_co: int, rng, **kwargs) -> Atoms | None:
    """A slab with `n_co` CO; None where they do not fit."""
    atoms = facet_slab.copy()
    placed = all(place_co(atoms, rng, gap=(1.85, 2.15), **kwargs) for _ in range(n_co))
    atoms.set_cell(atoms.cell.array + np.diag([0, 0, 3.0]))
    return atoms if placed else None


def covered_dynamics(
    atoms: Atoms | None, calc, temperature_K: float, count: int, rng, kind: str, origin: str
) -> list[Atoms]:
    """The rattled start, and snapshots every 75 fs after 100 fs; no frames where `atoms` is None."""
    if atoms is None:
        return []
    start = atoms.copy()
    start.positions += rng.normal(size=start.positions.shape) * 0.04
    moved = dynamics(atoms, calc, temperature_K, count, rng, timestep_fs=1.5, first=66, every=50)
    frames = [start, *(a.copy() for a in moved)]
    return [named(a, kind, origin, step) for step, a in enumerate(frames)]


def strained_cell(rng, *, volume: float, shear: float, rattle: float) -> Atoms:
    """A rattled 4-atom cell under a random volume change (at most `volume`) and strain."""
    cell = bulk("Pt", cubic=True, a=LATTICE)
    strain = rng.normal(size=(3, 3)) * rng.uniform(0.0, shear)
    scale = 1.0 + rng.uniform(-volume, volume)
    cell.set_cell(cell.cell.array @ (np.eye(3) + (strain + strain.T) / 2) * scale, scale_atoms=True)
    cell.positions += rng.normal(size=cell.positions.shape) * rng.uniform(0.0, rattle)
    return cell


def mover(name_or_path: str):
    """ASE calculator of the expensive expert of a pair."""
    from moe_md.interfaces.ase import MixtureCalculator

    return MixtureCalculator(name_or_path, region=0, dtype="float32")
