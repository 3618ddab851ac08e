"""Environments, rules and distances to the expert boundary, against ASE structures and brute force."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, diamond111, fcc111, fcc211
from ase.spacegroup import crystal as spacegroup_crystal

from moe_md.analysis.environments import (
    bond_cutoff,
    bonds_across,
    bonds_per_area,
    boundary_distance,
    coordination,
    environments,
    near_other_species,
    top_layers,
)
from moe_md.data.reading import frame_from_atoms

A0 = 3.96
NEAREST = A0 / np.sqrt(2)
PLATINUM = bulk("Pt", a=A0)
BOND = bond_cutoff(PLATINUM)
COORDINATION = {"Pt": 12}
PEROVSKITE = spacegroup_crystal(
    ["Sr", "Ti", "O"],
    [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
    spacegroup=221,
    cellpar=[3.9, 3.9, 3.9, 90, 90, 90],
)


def slab(layers=6, rattle=0.0, **kwargs):
    atoms = fcc111("Pt", (2, 2, layers), a=A0, vacuum=8.0, orthogonal=True, **kwargs)
    atoms += Atoms("CO", [atoms.positions[-1] + [0, 0, h] for h in (1.85, 3.0)])
    atoms.rattle(rattle, seed=0)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "shells", "expected"),
    [  # the last shell of neighbours and the next one, Å
        (PLATINUM, (NEAREST, A0), {"Pt": 12}),
        (bulk("Mo", a=3.16), (3.16, 3.16 * 2**0.5), {"Mo": 14}),
        (bulk("Si", a=5.43), (5.43 * 3**0.5 / 4, 5.43 / 2**0.5), {"Si": 4}),
        (bulk("Mg", a=3.2, c=5.2), (3.2, 3.2 * 2**0.5), {"Mg": 12}),
        (bulk("MgO", "rocksalt", a=4.2), (2.1, 4.2 / 2**0.5), {"Mg": 6, "O": 6}),
        (PEROVSKITE, (3.9 / 2**0.5, 3.9 * 3**0.5 / 2), {"O": 14, "Sr": 12, "Ti": 6}),
    ],
    ids=["fcc", "bcc", "diamond", "hcp", "rocksalt", "perovskite"],
)
def test_bonds_of_perfect_crystals(atoms, shells, expected):
    """Neighbours counted in a supercell, by its minimum images."""
    cutoff = bond_cutoff(atoms)
    assert shells[0] * 1.1 < cutoff < shells[1]
    assert coordination(atoms, cutoff) == expected
    many = atoms * 4
    distance = many.get_all_distances(mic=True)
    counts = ((distance > 0) & (distance < cutoff)).sum(axis=1)
    assert {s: int(counts[np.array(many.symbols) == s].min()) for s in expected} == expected
    assert bond_cutoff(many) == pytest.approx(cutoff) and bond_cutoff(atoms * (1, 2, 1)) == pytest.approx(
        cutoff
    )
    assert set(environments(frame_from_atoms(atoms), expected, cutoff)) == {"bulk"}


@pytest.mark.parametrize(
    ("atoms", "per_area"),
    [
        (PLATINUM, 3 * np.sqrt(2) / NEAREST**2),
        (bulk("Po", "sc", a=3.0), 1.5 / 3.0**2),
        (bulk("Si", a=5.43), 2 * 3**0.5 / 5.43**2),
    ],
    ids=["fcc", "sc", "diamond"],
)
def test_bonds_per_area_are_the_mean_over_random_planes(atoms, per_area):
    cutoff = bond_cutoff(atoms)
    assert bonds_per_area(atoms, cutoff) == pytest.approx(per_area)
    # A sphere in the crystal has a surface of all orientations.
    many = atoms * tuple(
        int(n) for n in np.ceil(44 / (1 / np.linalg.norm(np.linalg.inv(atoms.cell), axis=0)))
    )
    center = many.cell.array.sum(axis=0) / 2 + [0.3, 0.5, 0.7]
    near = np.linalg.norm(many.positions - center, axis=1) < 20
    many = many[near]
    many.pbc = False
    owner = (np.linalg.norm(many.positions - center, axis=1) > 14).astype(int)
    crossing = bonds_across(frame_from_atoms(many), owner, cutoff)
    assert crossing / (4 * np.pi * 14**2) == pytest.approx(per_area, rel=0.03)


def test_environments_of_a_diamond_slab():
    """Of double layers; a vacancy in rock salt has six neighbours of the other species."""
    silicon = bulk("Si", a=5.43)
    cutoff = bond_cutoff(silicon)
    slab = diamond111("Si", (2, 2, 8), a=5.43, vacuum=8.0)
    found = environments(frame_from_atoms(slab), coordination(silicon, cutoff), cutoff)
    height = slab.positions[:, 2].round(3)
    layers = [set(found[height == z]) for z in np.unique(height)]
    # Atoms of the outermost layers have one or three neighbours.
    cut = [n for n in np.bincount(np.nonzero(slab.get_all_distances(mic=True) < cutoff)[0]) if n < 5]
    assert len(cut) == (found == "surface").sum() == 8
    assert layers[0] == layers[-1] == {"surface"} and layers[3] == layers[4] == {"bulk"}
    oxide = bulk("MgO", "rocksalt", a=4.2)
    cutoff = bond_cutoff(oxide)
    cell = bulk("MgO", "rocksalt", a=4.2, cubic=True) * 3
    removed = cell.symbols[0]
    del cell[0]
    found = environments(frame_from_atoms(cell), coordination(oxide, cutoff), cutoff)
    assert (found == "surface").sum() == 6
    assert removed not in set(np.array(cell.symbols)[found == "surface"])


@pytest.mark.parametrize("rattle", [0.0, 0.08])
def test_environments_of_a_slab(rattle):
    atoms = slab(rattle=rattle)
    found = environments(frame_from_atoms(atoms), COORDINATION, BOND)
    assert (
        found.tolist()
        == ["surface"] * 4
        + ["subsurface"] * 4
        + ["bulk"] * 8
        + ["subsurface"] * 4
        + ["surface"] * 4
        + ["adsorbate"] * 2
    )


def test_environments_of_defects():
    crystal = bulk("Pt", a=A0, cubic=True) * 3
    assert set(environments(frame_from_atoms(crystal), COORDINATION, BOND)) == {"bulk"}
    del crystal[0]
    found = environments(frame_from_atoms(crystal), COORDINATION, BOND)
    assert (found == "surface").sum() == 12 and (found == "subsurface").any()
    step = fcc211("Pt", (3, 2, 4), a=A0, vacuum=8.0)
    add_adsorbate(step, "C", 1.2)
    found = environments(frame_from_atoms(step), COORDINATION, BOND)
    assert found[-1] == "adsorbate" and found[np.argmax(step.positions[:-1, 2])] == "surface"
    with pytest.raises(ValueError, match="bond_cutoff must be positive"):
        environments(frame_from_atoms(step), COORDINATION, 0.0)


@pytest.mark.parametrize("periodic", [True, False])
def test_rules_assign_top_layers_and_atoms_near_other_species(periodic):
    atoms = slab(rattle=0.1)
    atoms.pbc = (True, True, periodic)
    atoms.positions[:, 2] -= 12.0  # across the periodic boundary
    if periodic:
        atoms.wrap()
    layer = np.append(np.repeat(np.arange(6)[::-1], 4), [-1, -1])  # 0 on top
    for n in (1, 3, 6):
        owner = top_layers(("Pt",), n, NEAREST)(frame_from_atoms(atoms))
        assert ((owner == 0) == (layer < n)).all()
    distance = atoms.get_all_distances(mic=True)[:, -2:]
    assert (
        (near_other_species(("Pt",), 4.0)(frame_from_atoms(atoms)) == 0) == (distance.min(axis=1) < 4.0)
    ).all()
    # Without vacuum there are no layers; without other species nothing is near them.
    crystal = frame_from_atoms(bulk("Pt", a=A0, cubic=True) * 2)
    for rule in (top_layers(("Pt",), 2, NEAREST), near_other_species(("Pt",), 5.0)):
        assert (rule(crystal) == 1).all()
        assert (rule(frame_from_atoms(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]))) == 0).all()


def test_distance_to_the_expert_boundary_is_that_to_the_nearest_image():
    atoms = bulk("Pt", a=A0, cubic=True) * (2, 2, 4)
    atoms.rattle(0.1, seed=1)
    owner = (atoms.positions[:, 2] > 7.5).astype(int)
    found = boundary_distance(frame_from_atoms(atoms), owner, max_distance=7.0)
    distance = atoms.get_all_distances(mic=True)  # the nearest image of each
    nearest = np.where(owner[:, None] != owner[None], distance, np.inf).min(axis=1)
    assert (nearest < 7.0).all()
    np.testing.assert_allclose(found, np.where(owner == 0, nearest, -nearest))
    alone = boundary_distance(frame_from_atoms(atoms), np.zeros(len(atoms), int))
    assert (alone == np.inf).all()
    with pytest.raises(ValueError, match=r"owner must have shape \[64\]"):
        boundary_distance(frame_from_atoms(atoms), [0, 1])


def test_bonds_across_planes():
    """Three bonds for each atom of a (111) plane, at both boundaries in a periodic crystal."""
    atoms = fcc111("Pt", (3, 4, 6), a=A0, orthogonal=False, periodic=True)
    assert bonds_across(frame_from_atoms(atoms), (np.arange(72) >= 36).astype(int), BOND) == 2 * 3 * 12
