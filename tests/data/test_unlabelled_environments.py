"""Unlabelled environments: kinds, strains, positions of adatoms, numbers of atoms."""

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from moe_md.data.environments import ideal_crystals, metal_frames, random_metal
from moe_md.data.reading import frame_to_atoms

METAL = {"symbol": "Pt", "lattice_constant": 3.98}


def coordination(frame, cutoff):
    return np.bincount(neighbor_list("i", frame_to_atoms(frame), cutoff), minlength=len(frame.symbols))


def nearest(frame):
    return neighbor_list("d", frame_to_atoms(frame), 4.0).min()


def test_random_metal_draws_every_kind():
    rng = np.random.default_rng(0)
    frames = [random_metal(rng, **METAL) for _ in range(300)]
    slabs = {f"slab-{f}" for f in ("111", "100", "110", "211")}
    adatoms = {f"slab-{f}-adatom" for f in ("111", "100", "110")}
    assert {f.kind for f in frames} == {"bulk-strained", "bulk-vacancy"} | slabs | adatoms
    for frame in frames:
        n = len(frame.symbols)
        assert n <= 31 and set(frame.symbols) == {"Pt"} and np.isfinite(frame.positions).all()
        assert frame.forces is None and frame.energy is None and frame.stress is None
        assert frame.pbc.all() == frame.kind.startswith("bulk") and frame.pbc[:2].all()
        assert {"bulk-strained": n == 4, "bulk-vacancy": n == 31}.get(frame.kind, True)
    assert min(nearest(frame) for frame in frames) > 1.2  # rattled, but no two atoms coincide


def test_ideal_crystals_are_strained_lattices():
    rng = np.random.default_rng(0)
    frames = ideal_crystals(rng, 100, **METAL, max_strain=0.03)
    assert len(frames) == 100 and all(f.symbols == ("Pt",) and f.pbc.all() for f in frames)
    stretch = np.array([np.cbrt(4 * np.linalg.det(f.cell)) / 3.98 - 1.0 for f in frames])
    assert -0.04 < stretch.min() < -0.025 and 0.025 < stretch.max() < 0.04
    assert np.corrcoef(stretch, np.arange(100))[0, 1] > 0.9  # spread evenly, in order
    assert coordination(ideal_crystals(rng, 1, **METAL, max_strain=0.0)[0], 3.2).tolist() == [12]
    with pytest.raises(ValueError, match=r"max_strain must be in \[0, 0.3\), got 0.3"):
        ideal_crystals(rng, 1, **METAL, max_strain=0.3)


def test_adatoms_are_on_lattice_sites():
    rng = np.random.default_rng(0)
    frames = [random_metal(rng, **METAL, max_strain=0.0, max_rattle=0.0) for _ in range(100)]
    bonds = {"slab-111-adatom": 3, "slab-100-adatom": 4, "slab-110-adatom": 5}
    for frame in frames:
        assert nearest(frame) == pytest.approx(3.98 / np.sqrt(2), abs=1e-6)
        if frame.kind in bonds:
            top = np.argmax(frame.positions[:, 2])
            assert coordination(frame, 3.2)[top] == bonds[frame.kind]


def test_strain_is_symmetric_and_bounded():
    rng = np.random.default_rng(1)
    cells = [random_metal(rng, **METAL, max_strain=0.03) for _ in range(60)]
    for frame in (f for f in cells if f.kind == "bulk-strained"):
        strain = frame.cell / 3.98 - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        assert np.abs(strain).max() <= 0.04 + 1e-12


@pytest.mark.parametrize("max_atoms", [4, 7, 50, 256])
def test_metal_frames_leave_at_most_three_atoms_out(max_atoms):
    frames = metal_frames(np.random.default_rng(2), max_atoms, **METAL)
    total = sum(len(f.symbols) for f in frames)
    assert max_atoms - 3 <= total <= max_atoms
    again = metal_frames(np.random.default_rng(2), max_atoms, **METAL)
    assert all((a.positions == b.positions).all() for a, b in zip(frames, again))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random_metal(np.random.default_rng(0), **METAL, max_strain=0.5), "max_strain must be in"),
        (
            lambda: random_metal(np.random.default_rng(0), **METAL, max_rattle=-0.1),
            "max_rattle must not be negative",
        ),
        (lambda: metal_frames(np.random.default_rng(0), 3, **METAL), "max_atoms must be at least 4"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
