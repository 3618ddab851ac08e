import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from moe_md.data.crystals import fcc_slab, fcc_supercell, ideal_crystals, metal_frames, random_metal
from moe_md.data.extxyz import frame_to_atoms


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


def test_random_metal_visits_every_kind():
    rng = np.random.default_rng(0)
    frames = [random_metal(rng) for _ in range(300)]
    slabs = {f"slab-{f}" for f in ("111", "100", "110", "211")}
    adatoms = {f"slab-{f}-adatom" for f in ("111", "100", "110")}
    assert {f.kind for f in frames} == {"bulk-strained", "bulk-vacancy"} | slabs | adatoms
    for frame in frames:
        n = len(frame.symbols)
        assert n <= 31 and set(frame.symbols) == {"Pt"} and np.isfinite(frame.positions).all()
        assert frame.forces is None and frame.energy is None and frame.stress is None
        assert frame.pbc.all() == frame.kind.startswith("bulk") and frame.pbc[:2].all()
        assert {"bulk-strained": n == 4, "bulk-vacancy": n == 31}.get(frame.kind, True)
    assert min(nearest(frame) for frame in frames) > 1.2  # rattled, never on top of each other


def test_perfect_crystals_are_strained_lattices():
    rng = np.random.default_rng(0)
    frames = ideal_crystals(rng, 100, max_strain=0.03)
    assert len(frames) == 100 and all(f.symbols == ("Pt",) and f.pbc.all() for f in frames)
    stretch = np.array([np.cbrt(4 * np.linalg.det(f.cell)) / 3.98 - 1.0 for f in frames])
    assert -0.04 < stretch.min() < -0.025 and 0.025 < stretch.max() < 0.04
    assert np.corrcoef(stretch, np.arange(100))[0, 1] > 0.9  # spread evenly, in order
    assert coordination(ideal_crystals(rng, 1, max_strain=0.0)[0], 3.2).tolist() == [12]
    with pytest.raises(ValueError, match=r"max_strain must be in \[0, 0.3\), got 0.3"):
        ideal_crystals(rng, 1, max_strain=0.3)


def test_adatoms_sit_where_the_lattice_goes_on():
    rng = np.random.default_rng(0)
    frames = [random_metal(rng, max_strain=0.0, max_rattle=0.0) for _ in range(100)]
    bonds = {"slab-111-adatom": 3, "slab-100-adatom": 4, "slab-110-adatom": 5}
    for frame in frames:
        assert nearest(frame) == pytest.approx(3.98 / np.sqrt(2), abs=1e-6)
        if frame.kind in bonds:
            top = np.argmax(frame.positions[:, 2])
            assert coordination(frame, 3.2)[top] == bonds[frame.kind]


def test_strain_is_symmetric_and_bounded():
    rng = np.random.default_rng(1)
    cells = [random_metal(rng, max_strain=0.03) for _ in range(60)]
    for frame in (f for f in cells if f.kind == "bulk-strained"):
        strain = frame.cell / 3.98 - np.eye(3)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)
        assert np.abs(strain).max() <= 0.04 + 1e-12


@pytest.mark.parametrize("n_rows", [4, 7, 50, 256])
def test_metal_frames_fill_the_rows(n_rows):
    frames = metal_frames(np.random.default_rng(2), n_rows)
    total = sum(len(f.symbols) for f in frames)
    assert n_rows - 3 <= total <= n_rows
    again = metal_frames(np.random.default_rng(2), n_rows)
    assert all((a.positions == b.positions).all() for a, b in zip(frames, again))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fcc_supercell("Pt", 0.0, 1), "lattice_constant must be positive"),
        (lambda: fcc_supercell("Pt", 3.98, (1, 0, 1)), "repeat must be at least 1"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), "112"), "facet must be one of"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), "211"), "multiple of 3"),
        (lambda: fcc_slab("Pt", 3.98, (2, 2, 3), vacuum=-1.0), "vacuum must be positive"),
        (lambda: random_metal(np.random.default_rng(0), max_strain=0.5), "max_strain must be in"),
        (lambda: random_metal(np.random.default_rng(0), max_rattle=-0.1), "max_rattle must not be negative"),
        (lambda: metal_frames(np.random.default_rng(0), 3), "n_rows must be at least 4"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
