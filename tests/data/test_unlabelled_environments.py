"""Environments cut from reference structures: they are rows of the crystal, with what was changed."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal

from moe_md.data.batching import frame_rows
from moe_md.data.environments import lattice, perfect_crystal, random_rows, random_strain
from moe_md.data.reading import frame_from_atoms, frame_to_atoms
from moe_md.data.references import reference_from_atoms
from moe_md.settings import EnvironmentSettings

CUTOFF = 5.0
RUTILE = crystal(
    ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]
)
CRYSTALS = {
    "fcc": bulk("Pt", a=3.98),
    "bcc": bulk("W"),
    "hcp": bulk("Be"),
    "diamond": bulk("Si"),
    "rock salt": bulk("MgO", "rocksalt", a=4.21),
    "ordered alloy": bulk("CuAu", "cesiumchloride", a=3.1),
    "rutile": RUTILE,
}
STILL = {"max_strain": 0.0, "max_rattle": 0.0}
KINDS = ("vacancies", "interstitials", "antisites", "surfaces")


def only(kind: str | None, **changes) -> EnvironmentSettings:
    """One kind of environment, without strain and displacements."""
    shares = {name: 1.0 if name == kind else 0.0 for name in KINDS}
    return EnvironmentSettings(**{**STILL, **shares, **changes})


def draws(atoms: Atoms, settings: EnvironmentSettings, count=40, n=4):
    species = tuple(sorted(set(atoms.symbols)))
    rng = np.random.default_rng(0)
    made = lattice(reference_from_atoms(atoms), species, CUTOFF, settings)
    return [random_rows(rng, made, settings, CUTOFF, n) for _ in range(count)]


def fingerprint(rows, k: int) -> tuple:
    """Species of a centre, and sorted distances and species of its neighbours."""
    kept = rows.mask[k]
    distance = np.linalg.norm(rows.displacement[k][kept], axis=1)
    found = sorted(zip(np.round(distance, 3).tolist(), rows.neighbor_species[k][kept].tolist()))
    return int(rows.center_species[k]), tuple(found)


@pytest.mark.parametrize("name", CRYSTALS)
def test_rows_of_the_undistorted_crystal_are_those_of_periodic_images(name):
    atoms = CRYSTALS[name]
    species = tuple(sorted(set(atoms.symbols)))
    periodic = frame_rows(frame_from_atoms(atoms), species, CUTOFF)
    known = {fingerprint(periodic, k) for k in range(len(atoms))}
    found = {fingerprint(rows, k) for rows in draws(atoms, only(None)) for k in range(4)}
    assert found == known


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_defect_changes_rows_near_it(name):
    """A vacancy takes one neighbour, an interstitial adds one to most rows, and surfaces take many."""
    atoms = CRYSTALS[name]
    full = np.bincount(neighbor_list("i", atoms, CUTOFF))

    def change(kind):
        found = [rows.mask.sum(axis=1) - full.max() for rows in draws(atoms, only(kind))]
        return np.concatenate(found)

    span = full.max() - full.min()
    lost, added, cut = change("vacancies"), change("interstitials"), change("surfaces")
    assert set(lost) <= set(range(-1 - span, 0))  # all rows drawn are near
    assert np.mean((added > 0 - span) & (added <= 1)) > 0.7  # others are the interstitial's own
    assert cut.min() < -0.4 * full.max() and cut.max() <= 0 and len(set(cut)) > 5


def test_an_antisite_exchanges_two_species():
    """The crystal of two species keeps its sites, while near rows have other species on them."""
    atoms = CRYSTALS["ordered alloy"]
    perfect = {fingerprint(rows, k) for rows in draws(atoms, only(None)) for k in range(4)}
    changed = [fingerprint(rows, k) for rows in draws(atoms, only("antisites")) for k in range(4)]
    assert np.mean([row not in perfect for row in changed]) > 0.8
    lengths = {tuple(d for d, _ in neighbors) for _, neighbors in perfect}
    assert {tuple(d for d, _ in neighbors) for _, neighbors in changed} == lengths
    one_species = {fingerprint(rows, 0) for rows in draws(CRYSTALS["bcc"], only("antisites"))}
    assert len(one_species) == 1  # the perfect crystal, as there is nothing to exchange


def test_surfaces_have_terraces_steps_and_adatoms():
    """Platinum (111) and (100): atoms of 9 and 8 neighbours, an adatom of 3 or 4, a step of 7 or 6."""
    rows = draws(CRYSTALS["fcc"], only("surfaces"), count=300)
    nearest = np.concatenate(
        [(r.mask & (np.linalg.norm(r.displacement, axis=2) < 3.3)).sum(axis=1) for r in rows]
    )
    assert {3, 4, 6, 7, 8, 9, 12} <= set(nearest.tolist()) and nearest.max() == 12


def test_a_melt_is_strained_and_rattled_only():
    melt = bulk("Si", cubic=True) * 2
    melt.rattle(0.4, seed=1)
    periodic = frame_rows(frame_from_atoms(melt), ("Si",), CUTOFF)
    known = {fingerprint(periodic, k) for k in range(len(melt))}
    found = {fingerprint(rows, k) for rows in draws(melt, only("vacancies"), count=10) for k in range(4)}
    assert found <= known


def test_displacements_are_a_share_of_the_nearest_distance():
    """Widened pairs of neighbours in bcc and diamond crystals, relative to their nearest distance."""
    for name, nearest in (("bcc", 3.165 * 3**0.5 / 2), ("diamond", 5.43 * 3**0.5 / 4)):
        rows = draws(CRYSTALS[name], only(None, max_rattle=0.1), count=200)
        first = np.concatenate(
            [
                np.linalg.norm(np.where(r.mask[..., None], r.displacement, 99), axis=2).min(axis=1)
                for r in rows
            ]
        )
        assert 0.5 * nearest < first.min() < 0.9 * nearest and first.max() < 1.05 * nearest


def test_perfect_crystals_move_sublattices():
    settings = EnvironmentSettings(max_perfect_strain=0.03)
    made = lattice(reference_from_atoms(bulk("Si")), ("Si",), CUTOFF, settings)
    rng = np.random.default_rng(0)
    cells = [frame_to_atoms(perfect_crystal(rng, made, s, settings)) for s in np.linspace(-0.03, 0.03, 40)]
    volume = np.array([atoms.get_volume() for atoms in cells]) / bulk("Si").get_volume()
    assert np.corrcoef(volume, np.arange(40))[0, 1] > 0.9 and 0.85 < volume.min() < 0.95
    bonds = [neighbor_list("d", atoms, 3.0) for atoms in cells]
    assert max(np.ptp(d) for d in bonds) > 0.03 and min(len(d) for d in bonds) == 8
    unmoved = lattice(reference_from_atoms(bulk("Pt", a=3.98)), ("Pt",), CUTOFF, settings)
    assert len(perfect_crystal(rng, unmoved, 0.0, settings).symbols) == 1


def test_strains_are_symmetric_and_bounded():
    rng = np.random.default_rng(1)
    for _ in range(20):
        strain = random_strain(rng, 0.03)
        np.testing.assert_array_equal(strain, strain.T)
        assert np.abs(strain).max() <= 0.03
        assert np.abs(random_strain(rng, 0.03, volume=True)).max() <= 0.04


def test_unknown_species_are_refused():
    with pytest.raises(ValueError, match="references must have species of the experts, Pt, got Si with Si"):
        lattice(reference_from_atoms(bulk("Si")), ("Pt",), CUTOFF, EnvironmentSettings())
