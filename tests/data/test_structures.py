"""Ideal crystals and slabs: coordination numbers, distances, adsorbates."""

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from moe_md.data.reading import frame_to_atoms
from moe_md.data.structures import co_covered_slab, facet_slab, fcc_slab, fcc_supercell, slab_with_adsorbate


def coordination(frame, cutoff):
    return np.bincount(neighbor_list("i", frame_to_atoms(frame), cutoff), minlength=len(frame.symbols))


def nearest(frame):
    return neighbor_list("d", frame_to_atoms(frame), 4.0).min()


def test_supercell_is_fcc():
    frame = fcc_supercell("Pt", 3.98, (1, 2, 3))
    assert len(frame.symbols) == 24 and frame.pbc.all()
    np.testing.assert_allclose(frame.cell, np.diag([3.98, 7.96, 11.94]))
    assert (coordination(frame, 3.0) == 12).all()
    assert frame.energy is None and frame.forces is None and frame.stress is None


@pytest.mark.parametrize("facet, surface", [("111", 9), ("100", 8), ("110", 7), ("211", 7)])
def test_slab_surfaces_have_the_known_coordination(facet, surface):
    frame = fcc_slab("Pt", 3.98, (3, 3, 5), facet)
    assert frame.pbc.tolist() == [True, True, False] and len(frame.symbols) == 45
    count = coordination(frame, 3.2)
    assert count.min() == surface and count.max() == 12
    assert nearest(frame) == pytest.approx(3.98 / np.sqrt(2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fcc_supercell("Pt", 0.0, 1), "lattice_constant must be positive"),
        (lambda: fcc_supercell("Pt", 3.98, (1, 0, 1)), "repeat must be at least 1"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), "112"), "facet must be one of"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), "211"), "multiple of 3"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), vacuum=-1.0), "vacuum must be positive"),
        (lambda: slab_with_adsorbate("Pt", 3.98, (2, 3, 3)), "size must be positive with an even number"),
        (lambda: slab_with_adsorbate("Pt", 3.98, (2, 2, 3), adsorbate="Xy"), "adsorbate must be a molecule"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_slab_may_be_changed():
    """The cached slab of `fcc_slab` is copied."""
    slab = facet_slab("Pt", 3.98, (1, 1, 3), "111", 5.0)
    slab.positions += 1.0
    again = facet_slab("Pt", 3.98, (1, 1, 3), "111", 5.0)
    assert np.abs(slab.positions - again.positions).min() == pytest.approx(1.0)


def test_co_stands_on_top_sites_with_carbon_down():
    quarter = co_covered_slab("Pt", 3.98, 4, 4, 3)
    assert np.bincount(quarter.get_tags()).tolist() == [8, 16, 16, 16]
    for atoms in (quarter, slab_with_adsorbate("Pt", 3.98, (4, 4, 3))):
        distances = atoms.get_all_distances(mic=True)
        carbon, oxygen, metal = (np.flatnonzero(atoms.symbols == s) for s in ("C", "O", "Pt"))
        np.testing.assert_allclose(distances[np.ix_(carbon, metal)].min(axis=1), 1.85, atol=1e-9)
        np.testing.assert_allclose(distances[np.ix_(carbon, oxygen)].min(axis=1), 1.15, atol=1e-3)
        assert atoms.positions[oxygen, 2].min() > atoms.positions[carbon, 2].max()
