"""The jump of an atom into a neighbouring vacancy: its two ends, and the band between them."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from ase.mep import NEB
from ase.optimize import FIRE

RATTLE = 0.05  # Å, standard deviation of each coordinate of the first structure before it is relaxed
SAME_SITE = 0.1  # Å


class Jump(NamedTuple):
    """A vacancy before and after a neighbour has jumped into it; atoms keep their numbers."""

    first: Atoms  # on the sites of the perfect crystal
    last: Atoms
    jumper: int
    rims: np.ndarray  # atoms in the first shell of the vacancy, before or after


class Band(NamedTuple):
    """A relaxed band."""

    images: list[Atoms]  # with energies
    energies: np.ndarray  # eV
    converged: bool
    steps: int
    seconds: float


def vacancy_jump(perfect: Atoms, within: float) -> Jump:
    """The jump of a nearest neighbour into the vacancy in the middle of a crystal, unrelaxed.

    Args:
        perfect: the crystal.
        within: Å, the distance of the vacancy within which atoms are in its first shell.
    """
    middle = perfect.cell.array.sum(axis=0) / 2
    site = int(np.argmin(np.linalg.norm(perfect.positions - middle, axis=1)))
    everyone = np.arange(len(perfect))
    distance = perfect.get_distances(site, everyone, mic=True)
    distance[site] = np.inf
    jumper = int(np.argmin(distance))
    from_jumper = perfect.get_distances(jumper, everyone, mic=True)
    near = np.flatnonzero((np.minimum(distance, from_jumper) < within) & (everyone != site))
    first, last = perfect.copy(), perfect.copy()
    last.positions[jumper] = perfect.positions[site]
    for atoms in (first, last):
        del atoms[site]
    return Jump(first, last, jumper - (jumper > site), near - (near > site))


def mirrored(jump: Jump, relaxed: Atoms) -> Atoms | None:
    """The relaxed last structure: the image of the relaxed first one by inversion at the middle of the jump.

    None where that is no symmetry of the crystal.
    """

    def to_nearest(vectors):
        return find_mic(vectors, relaxed.cell)[0]

    first, last = jump.first.positions, jump.last.positions
    center = first[jump.jumper] + to_nearest(last[[jump.jumper]] - first[[jump.jumper]])[0] / 2
    displacement = to_nearest(relaxed.positions - first)
    image = relaxed.copy()
    for n, position in enumerate(2 * center - first):
        away = np.linalg.norm(to_nearest(last - position), axis=1)
        k = int(np.argmin(away))
        if away[k] > SAME_SITE:
            return None
        image.positions[k] = last[k] - displacement[n]
    return image


def relaxed_ends(
    jump: Jump, make_calculator: Callable, fmax: float, steps: int, seed: int = 0
) -> tuple[Atoms, Atoms]:
    """Both ends, relaxed from small random displacements; by symmetry of one energy where there is one."""
    first, last = jump.first.copy(), jump.last.copy()
    for atoms in (first, last):
        atoms.rattle(RATTLE, seed=seed)
    relax(first, make_calculator(), fmax, steps)
    last = mirrored(jump, first) or last
    relax(last, make_calculator(), fmax, steps)
    return first, last


def relax(atoms: Atoms, calculator, fmax: float, steps: int) -> bool:
    """Relax the atoms in place under a calculator, which they keep; whether that converged."""
    atoms.calc = calculator
    return bool(FIRE(atoms, logfile=None).run(fmax=fmax, steps=steps))


def band(
    ends: tuple[Atoms, Atoms], make_calculator: Callable, n_images: int, fmax: float, steps: int
) -> Band:
    """The ends, relaxed under a potential, and a climbing band of `n_images` images between them.

    Args:
        ends: where to start; they are not changed.
        make_calculator: makes the calculator of each image.
        n_images: without the ends; odd, so that one is at the middle of a symmetric path.
        fmax: eV/Å, the longest force at the end; half of it at the ends of the band.
        steps: at most so many of each of the three relaxations.
    """
    began = time.perf_counter()
    first, last = (end.copy() for end in ends)
    converged = [relax(end, make_calculator(), fmax / 2, steps) for end in (first, last)]
    images = [first, *(first.copy() for _ in range(n_images)), last]
    for image in images[1:-1]:
        image.calc = make_calculator()
    neb = NEB(images, k=0.1, method="improvedtangent")
    neb.interpolate(mic=True)
    taken = 0
    for neb.climb, limit in ((False, 5 * fmax), (True, fmax)):
        optimizer = FIRE(neb, logfile=None)
        done = optimizer.run(fmax=limit, steps=steps)
        taken += optimizer.nsteps
    energies = np.array([image.get_potential_energy() for image in images])
    return Band(images, energies, bool(done and all(converged)), taken, time.perf_counter() - began)
