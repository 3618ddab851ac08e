"""Environments, rules and distances to the expert boundary, against ASE structures and brute force."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, fcc211

from moe_md.analysis.environments import (
    bonds_across,
    boundary_distance,
    environments,
    near_other_species,
    top_layers,
)
from moe_md.data.reading import frame_from_atoms

A0 = 3.96
NEAREST = A0 / np.sqrt(2)
BOND = 1.2 * NEAREST


def slab(layers=6, rattle=0.0, **kwargs):
    atoms = fcc111("Pt", (2, 2, layers), a=A0, vacuum=8.0, orthogonal=True, **kwargs)
    atoms += Atoms("CO", [atoms.positions[-1] + [0, 0, h] for h in (1.85, 3.0)])
    atoms.rattle(rattle, seed=0)
    return atoms


@pytest.mark.parametrize("rattle", [0.0, 0.08])
def test_environments_of_a_slab(rattle):
    atoms = slab(rattle=rattle)
    found = environments(frame_from_atoms(atoms), ("Pt",), BOND)
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
    assert set(environments(frame_from_atoms(crystal), ("Pt",), BOND)) == {"bulk"}
    del crystal[0]
    found = environments(frame_from_atoms(crystal), ("Pt",), BOND)
    assert (found == "surface").sum() == 12 and (found == "subsurface").any()
    step = fcc211("Pt", (3, 2, 4), a=A0, vacuum=8.0)
    add_adsorbate(step, "C", 1.2)
    found = environments(frame_from_atoms(step), ("Pt",), BOND)
    assert found[-1] == "adsorbate" and found[np.argmax(step.positions[:-1, 2])] == "surface"
    with pytest.raises(ValueError, match="bond_cutoff must be positive"):
        environments(frame_from_atoms(step), ("Pt",), 0.0)


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
