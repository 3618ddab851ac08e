"""Unlabelled metal environments, drawn at random during training.

Training asks the experts to agree wherever the cheap one may own atoms:
strained and hot crystals, vacancies, clean surfaces, steps, adatoms. Ideal
crystals under strain are here too; `structures` builds what is drawn from.
"""

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk

from moe_md.checks import check_not_negative, check_positive
from moe_md.data.reading import Frame
from moe_md.data.structures import FACETS, FLAT_FACETS, facet_slab, named_frame


def random_metal(
    rng: np.random.Generator,
    *,
    symbol: str,
    lattice_constant: float,
    max_strain: float = 0.04,
    max_rattle: float = 0.15,
) -> Frame:
    """A random small metal structure.

    Two in five are 4-atom fcc cells, one in ten a 31-atom cell with a vacancy,
    the rest slabs of 3 to 5 layers, p(2x2) of (111), (100), (110) or a stepped
    (211), one in three of the flat ones with an adatom. All are strained (a
    random symmetric strain plus a volume change) and rattled.

    Args:
        rng: random number generator.
        symbol: chemical symbol of an fcc metal.
        lattice_constant: Å, positive.
        max_strain: largest component of the strain, and largest relative
            volume change added to it, in [0, 0.3).
        max_rattle: Å, the standard deviation of each coordinate is uniform
            between 0 and this; not negative.

    Returns:
        A frame without labels; `kind` names the structure drawn.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("lattice_constant", lattice_constant)
    _check_strain(max_strain)
    check_not_negative("max_rattle", max_rattle)
    draw = rng.random()
    if draw < 0.4:
        kind, atoms = "bulk-strained", bulk(symbol, "fcc", a=lattice_constant, cubic=True)
    elif draw < 0.5:
        kind, atoms = "bulk-vacancy", bulk(symbol, "fcc", a=lattice_constant, cubic=True) * 2
        del atoms[int(rng.integers(len(atoms)))]
    else:
        facet = str(rng.choice(list(FACETS), p=[0.4, 0.25, 0.2, 0.15]))
        kind = f"slab-{facet}"
        size = (3 if facet == "211" else 2, 2, int(rng.integers(3, 6)))
        atoms = facet_slab(symbol, lattice_constant, size, facet, vacuum=8.0)
        if facet in FLAT_FACETS and rng.random() < 1 / 3:
            kind += "-adatom"
            flat = FLAT_FACETS[facet]
            add_adsorbate(atoms, symbol, flat.layer_spacing * lattice_constant, flat.next_layer_site)

    _strain(atoms, _random_strain(rng, max_strain) + rng.uniform(-max_strain, max_strain) / 3.0 * np.eye(3))
    atoms.positions += rng.uniform(0.0, max_rattle) * rng.standard_normal((len(atoms), 3))
    return named_frame(atoms, kind)


def metal_frames(rng: np.random.Generator, max_atoms: int, **kwargs) -> list[Frame]:
    """Random metal structures of at most `max_atoms` atoms together.

    Structures are drawn by `random_metal`. After the first that does not fit,
    only 4-atom cells are added, so that at most three atoms are missing.

    Args:
        rng: random number generator.
        max_atoms: atoms of all frames together, at least 4.
        **kwargs: passed to `random_metal`.

    Returns:
        The frames.

    Raises:
        ValueError: `max_atoms` is below 4, or as `random_metal`.
    """
    if max_atoms < 4:
        raise ValueError(f"max_atoms must be at least 4, the smallest cell, got {max_atoms}.")
    frames: list[Frame] = []
    remaining, smallest_only = max_atoms, False
    while remaining >= 4:
        frame = random_metal(rng, **kwargs)
        n_atoms = len(frame.symbols)
        if n_atoms <= remaining and (n_atoms == 4 or not smallest_only):
            frames.append(frame)
            remaining -= n_atoms
        else:
            smallest_only = True
    return frames


def ideal_crystals(
    rng: np.random.Generator,
    n_crystals: int,
    *,
    symbol: str,
    lattice_constant: float,
    max_strain: float = 0.03,
) -> list[Frame]:
    """Ideal fcc crystals under random strains, as cells of one atom.

    Args:
        rng: random number generator.
        n_crystals: number of frames. The range of isotropic strains is cut into
            as many equal parts, and each frame draws its strain from one of them.
        symbol: chemical symbol of an fcc metal.
        lattice_constant: Å, positive.
        max_strain: largest isotropic strain, in [0, 0.3). A symmetric strain is
            added whose components are at most half of it, times a factor
            uniform between 0 and 1.

    Returns:
        Frames of one atom, without labels.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("lattice_constant", lattice_constant)
    _check_strain(max_strain)
    frames = []
    for k in range(n_crystals):
        isotropic = max_strain * (2.0 * (k + rng.random()) / n_crystals - 1.0)
        atoms = bulk(symbol, "fcc", a=lattice_constant)
        _strain(atoms, _random_strain(rng, 0.5 * max_strain * rng.random()) + isotropic * np.eye(3))
        frames.append(named_frame(atoms, "bulk-ideal"))
    return frames


def _random_strain(rng: np.random.Generator, largest: float) -> np.ndarray:
    """A symmetric `[3, 3]` strain whose components are at most `largest`."""
    strain = rng.uniform(-largest, largest, (3, 3))
    return 0.5 * (strain + strain.T)


def _strain(atoms: Atoms, strain: np.ndarray) -> None:
    """Strain cell and positions in place."""
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)


def _check_strain(max_strain: float) -> None:
    if not 0.0 <= max_strain < 0.3:
        raise ValueError(f"max_strain must be in [0, 0.3), got {max_strain}.")
