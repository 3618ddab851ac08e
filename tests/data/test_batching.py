import jax
import numpy as np
import pytest
from random_crystals import random_structures

from moe_md.data.batching import batches, collate, packing_plan, packs, prepare
from moe_md.data.dataset import dataset_from_frames, load_dataset, ptco_pbe
from moe_md.data.reading import Frame
from moe_md.data.structures import fcc_slab, fcc_supercell
from moe_md.neighbors.rows import rows_from_images

SPECIES = ("C", "O", "Pt")


@pytest.fixture(scope="module")
def ptco():
    return load_dataset(ptco_pbe(), SPECIES)


def test_collate_holds_every_frame(ptco):
    slab = next(f for f in ptco.frames if not all(f.pbc))  # a frame without stress
    frames = (ptco.frames[0], slab, ptco.frames[9])
    batch = collate(frames, SPECIES, 5.0, n_rows=30, max_neighbors=80, n_frames=5, dtype=np.float64)
    sizes = [len(f.symbols) for f in frames]
    n = sum(sizes)
    assert batch.rows.mask.shape == (30, 80) and batch.frame.shape == (30,) and batch.energy.shape == (5,)
    np.testing.assert_array_equal(batch.n_atoms, [*sizes, 0, 0])
    np.testing.assert_array_equal(batch.frame, np.repeat([0, 1, 2, 5], [*sizes, 30 - n]))
    np.testing.assert_array_equal(batch.row_mask, np.arange(30) < n)
    np.testing.assert_array_equal(batch.energy_mask, [True] * 3 + [False] * 2)
    np.testing.assert_array_equal(batch.stress_mask, [True, False, True, False, False])
    volumes = [abs(np.linalg.det(frames[0].cell)), 1.0, abs(np.linalg.det(frames[2].cell)), 1.0, 1.0]
    np.testing.assert_allclose(batch.volume, volumes)

    start = 0
    for k, frame in enumerate(frames):
        here = slice(start, start + sizes[k])
        numbers = np.array([SPECIES.index(s) for s in frame.symbols])
        alone = rows_from_images(frame.positions, numbers, frame.cell, frame.pbc, 5.0, max_neighbors=80)
        np.testing.assert_array_equal(batch.rows.displacement[here], alone.displacement)
        np.testing.assert_array_equal(batch.rows.mask[here], alone.mask)
        np.testing.assert_array_equal(batch.rows.center_species[here], numbers)
        np.testing.assert_array_equal(batch.rows.neighbor_species[here], alone.neighbor_species)
        inside = batch.rows.neighbor[here][alone.mask]
        np.testing.assert_array_equal(inside, alone.neighbor[alone.mask] + start)
        np.testing.assert_array_equal(batch.forces[here], frame.forces)
        assert batch.energy[k] == frame.energy and batch.forces_mask[here].all()
        start += sizes[k]
    assert (batch.rows.neighbor[~batch.rows.mask] == 30).all()
    assert (batch.rows.displacement[~batch.rows.mask] == 1.0).all()
    assert not batch.forces_mask[n:].any() and not batch.forces[n:].any()
    np.testing.assert_array_equal(batch.stress[2], frames[2].stress)


def test_missing_labels_are_masked():
    crystal = fcc_supercell("Pt", 3.98, 1)
    slab = fcc_slab("Pt", 3.98, (1, 1, 2))._replace(stress=np.eye(3), forces=np.ones((2, 3)))
    batch = collate([crystal, slab], SPECIES, 4.0)
    assert not batch.energy_mask.any() and not batch.energy.any()
    assert not batch.stress_mask.any() and not batch.stress.any()  # no stress of a slab
    np.testing.assert_array_equal(batch.forces_mask, [False] * 4 + [True] * 2)


def test_atom_without_neighbours():
    lone = Frame(np.zeros((1, 3)), ("C",), np.zeros((3, 3)), np.zeros(3, bool))
    batch = collate([lone], SPECIES, 4.0)
    assert batch.rows.mask.shape == (1, 1) and not batch.rows.mask.any() and batch.row_mask.all()
    empty = collate([], SPECIES, 4.0, n_rows=3, max_neighbors=2)
    assert not empty.row_mask.any() and empty.frame.tolist() == [1, 1, 1]


def test_batch_is_a_pytree_of_its_dtype():
    for dtype in (np.float32, np.float64):
        batch = collate([fcc_supercell("Pt", 3.98, 1)], SPECIES, 4.0, dtype=dtype)
        leaves = jax.tree.leaves(batch)
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype), np.dtype(bool), np.dtype(np.int32)}


@pytest.mark.parametrize("size", ["n_rows", "max_neighbors", "n_frames"])
def test_collate_refuses_too_small_shapes(size):
    frames = [fcc_supercell("Pt", 3.98, 1)] * 2
    with pytest.raises(ValueError, match=f"{size} must be at least"):
        collate(frames, SPECIES, 4.0, **{size: 1})


def test_collate_refuses_other_species():
    with pytest.raises(ValueError, match="species must include Au, which a frame contains, got"):
        collate([fcc_supercell("Au", 4.08, 1)], SPECIES, 4.0)


@pytest.fixture(scope="module")
def mixed():
    """Frames of 1 to 256 atoms, dense and sparse, each with its index as energy."""
    rng = np.random.default_rng(0)
    lone = Frame(np.zeros((1, 3)), ("C",), np.zeros((3, 3)), np.zeros(3, bool))
    pair = Frame(np.array([[0, 0, 0], [0, 0, 1.1]]), ("C", "O"), np.zeros((3, 3)), np.zeros(3, bool))
    big = [fcc_supercell("Pt", 3.98, n) for n in ((4, 4, 4), (4, 3, 3), (3, 3, 2))]
    frames = [lone, pair, *big, *random_structures(rng, 300), pair]
    frames = [f._replace(energy=float(k)) for k, f in enumerate(frames)]
    return prepare(dataset_from_frames(frames, SPECIES), 4.5)


@pytest.mark.parametrize("max_atoms", [1, 16, 64, 500])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_an_epoch_holds_every_frame_once_in_few_shapes(mixed, max_atoms, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    epoch = list(batches(mixed, max_atoms=max_atoms, rng=rng))
    seen = np.concatenate([b.energy[b.energy_mask] for b in epoch])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(mixed.frames)))
    shapes = {(*b.rows.mask.shape, len(b.energy)) for b in epoch}
    plan = packing_plan(mixed, max_atoms)
    assert len(shapes) <= 4 and shapes == {tuple(shape) for shape, _ in plan}
    for b in epoch:
        assert b.rows.mask.shape[0] <= max_atoms or b.energy_mask.sum() == 1
        assert b.row_mask.sum() == b.n_atoms.sum()


@pytest.mark.parametrize("seed", [None, 0])
def test_frames_of_two_labels_share_no_batch(mixed, seed):
    labels = [str(len(f.symbols) % 3) for f in mixed.frames]
    rng = None if seed is None else np.random.default_rng(seed)
    found = packs(mixed, max_atoms=64, rng=rng, separate_by=labels)
    assert sorted(k for _, pack in found for k in pack) == list(range(len(mixed.frames)))
    assert all(len({labels[k] for k in pack}) == 1 for _, pack in found)
    assert {shape for shape, _ in found} == {shape for shape, _ in packing_plan(mixed, 64)}


def test_epochs_are_shuffled_and_reproducible(mixed):
    def order(rng):
        epoch = batches(mixed, max_atoms=64, rng=rng)
        return np.concatenate([b.energy[b.energy_mask] for b in epoch]).tolist()

    rng = np.random.default_rng(3)
    first, second = order(rng), order(rng)
    assert first != second and order(np.random.default_rng(3)) == first


def test_padding_is_modest(ptco):
    prepared = prepare(ptco, 5.0)
    epoch = list(batches(prepared, max_atoms=64, rng=np.random.default_rng(0)))
    real = sum(b.rows.mask.sum() for b in epoch)
    padded = sum(b.rows.mask.size for b in epoch)
    assert real > 0.4 * padded


def test_prepare_names_the_invalid_frame():
    good = fcc_supercell("Pt", 3.98, 1)
    bad = good._replace(positions=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="frame 1 of dataset: position must hold no two atoms"):
        prepare(dataset_from_frames([good, bad]), 4.0)
    with pytest.raises(ValueError, match="at least one frame"):
        prepare(dataset_from_frames([]), 4.0)
    with pytest.raises(ValueError, match="max_atoms must be at least 1"):
        list(batches(prepare(dataset_from_frames([good]), 4.0), max_atoms=0))
