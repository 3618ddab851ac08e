"""Distances from the environments that an expert was trained for."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from scipy.spatial.distance import mahalanobis

from moe_md import checkpoint, experts
from moe_md.data.batching import collate, frame_rows
from moe_md.data.dataset import dataset_from_frames
from moe_md.data.environments import lattice, random_rows
from moe_md.data.reading import frame_from_atoms
from moe_md.data.references import reference_from_atoms
from moe_md.experts import familiarity
from moe_md.settings import EnvironmentSettings, TrainSettings
from moe_md.training import cotrain, losses
from moe_md.training.domain_fit import with_domain
from moe_md.training.inputs import environments_of

SPECIES, CUTOFF = ("Si", "O"), 4.5
PAIR = (
    experts.allegro(SPECIES, CUTOFF, l_max=1, num_layers=1, num_scalar_features=4, num_tensor_features=2),
    experts.density_moments(SPECIES, CUTOFF, num_radial=(3, 2), hidden=(4,), allowed_species=("Si",)),
)
SILICON = bulk("Si", a=5.47)


@pytest.fixture(scope="module")
def cheap() -> experts.Expert:
    settings = EnvironmentSettings(domain_rows=300, interstitials=0.0)
    return with_domain(PAIR[1], environments_of([reference_from_atoms(SILICON)], PAIR, settings), 0)


def rows_of(atoms: Atoms, cutoff: float = CUTOFF, dtype=np.float64):
    return frame_rows(frame_from_atoms(atoms), SPECIES, cutoff, dtype=dtype)


def hot(atoms: Atoms, sigma: float, seed: int = 0) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += sigma * np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    return atoms


def vacancy() -> Atoms:
    """Silicon without its first atom, whose four neighbours are the atoms returned as rim."""
    return hot(bulk("Si", a=5.47, cubic=True) * 3, 0.05)[1:]


def rim(atoms: Atoms) -> np.ndarray:
    distance = np.linalg.norm(
        atoms.positions - atoms.cell.array.sum(axis=0) * np.round(atoms.get_scaled_positions()), axis=1
    )
    return distance < 2.7


def test_it_is_the_mahalanobis_distance_of_moments():
    groups = [rows_of(hot(SILICON, 0.15, k)) for k in range(500)]
    fitted = familiarity.fit([groups], 2, CUTOFF)
    values = np.concatenate([np.asarray(familiarity.moments(g, 2, CUTOFF)) for g in groups[::2]]).astype(
        float
    )
    # The radial density of oxygen is zero. Small eigenvalues of the correlation are not trusted.
    scale = np.maximum(values.std(axis=0), 1e-3 * values.std(axis=0).max())
    eigenvalues, vectors = np.linalg.eigh(np.cov(values / scale, rowvar=False, bias=True))
    covariance = vectors * np.maximum(eigenvalues, 1e-4) @ vectors.T * np.outer(scale, scale)
    row = rows_of(hot(SILICON, 0.2, 1234))
    of_row = np.asarray(familiarity.moments(row, 2, CUTOFF), float)[0]
    expected = mahalanobis(of_row, values.mean(axis=0), np.linalg.inv(covariance)) / np.sqrt(values.shape[1])
    assert float(fitted.distance(row)[0] * fitted.limit) == pytest.approx(expected, rel=1e-2)


def test_crystals_are_familiar_and_melts_are_not(cheap):
    crystal = rows_of(hot(bulk("Si", a=5.47, cubic=True) * 2, 0.1))
    melt = rows_of(hot(bulk("Si", a=5.47, cubic=True) * 2, 0.8))
    assert cheap.familiarity.distance(crystal).max() < 1.0 < np.median(cheap.familiarity.distance(melt))
    assert experts.in_domain(cheap, crystal).all() and not experts.in_domain(cheap, melt).all()


def test_the_rim_of_a_vacancy_is_familiar_but_far_from_the_crystal(cheap):
    atoms = vacancy()
    rows, at_rim = rows_of(atoms), rim(atoms)
    assert at_rim.sum() == 4
    far = cheap.familiarity.crystal_distance(rows)
    assert far[at_rim].min() > 1.2 * far[~at_rim].max()
    assert (cheap.familiarity.distance(rows) < 1.0).all()


def test_other_species_are_outside(cheap):
    atoms = bulk("Si", a=5.47, cubic=True) * 2
    atoms.symbols[0] = "O"
    rows = rows_of(atoms)
    near = np.any(rows.mask & (rows.neighbor_species == 1), axis=1) | (rows.center_species == 1)
    assert (cheap.familiarity.distance(rows)[near] > 3.0).all()
    assert np.array_equal(experts.in_domain(cheap, rows), ~near)


def test_the_skin_changes_nothing(cheap):
    atoms = vacancy()
    within, wide = rows_of(atoms), rows_of(atoms, CUTOFF + 1.5)
    assert wide.mask.sum() > 1.5 * within.mask.sum()
    for function in (cheap.familiarity.distance, cheap.familiarity.crystal_distance):
        np.testing.assert_allclose(function(wide), function(within), rtol=1e-5)


def test_arrays_of_the_host_and_of_the_device_agree(cheap):
    rows = rows_of(vacancy(), dtype=np.float32)
    found = jax.jit(cheap.familiarity.distance)(jax.tree.map(jnp.asarray, rows))
    assert isinstance(cheap.familiarity.distance(rows), np.ndarray)
    np.testing.assert_allclose(found, cheap.familiarity.distance(rows), rtol=1e-4)


def test_it_does_not_change_under_rotations(cheap):
    atoms = vacancy()
    turned = atoms.copy()
    turned.rotate(37.0, (1.0, 2.0, -0.5), rotate_cell=True)
    np.testing.assert_allclose(
        cheap.familiarity.distance(rows_of(turned)), cheap.familiarity.distance(rows_of(atoms)), rtol=1e-3
    )


@pytest.mark.parametrize("name", ["distance", "crystal_distance"])
def test_derivatives(cheap, name):
    """First derivatives against differences, in float64; second ones are finite, on padded slots too."""
    rows = jax.tree.map(lambda x: jnp.asarray(x[:3]), rows_of(vacancy(), CUTOFF + 0.5))

    def total(displacement):
        return jnp.sum(getattr(cheap.familiarity, name)(rows._replace(displacement=displacement)))

    direction = np.random.default_rng(2).standard_normal(rows.displacement.shape) * rows.mask[..., None]
    along = jax.jit(lambda h: total(rows.displacement + h * direction))
    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    gradient = jax.grad(total)(rows.displacement)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(slope), rel=1e-6)
    second = jax.jvp(jax.grad(total), (rows.displacement,), (jnp.asarray(direction),))[1]
    assert np.isfinite(second).all() and np.abs(second).max() > 0


def test_most_environments_of_the_fit_are_in_the_domain(cheap):
    settings = EnvironmentSettings(interstitials=0.0)
    reference = lattice(reference_from_atoms(SILICON), SPECIES, CUTOFF, settings)
    rng = np.random.default_rng(99)
    drawn = [random_rows(rng, reference, settings, CUTOFF, 4) for _ in range(200)]
    share = np.mean(np.concatenate([experts.in_domain(cheap, rows) for rows in drawn]))
    assert 0.96 < share <= 1.0


def test_without_environments_the_domain_is_by_species():
    without = environments_of([reference_from_atoms(SILICON)], PAIR, EnvironmentSettings(domain_rows=0))
    assert with_domain(PAIR[1], without, 0).familiarity is None
    assert with_domain(PAIR[1], None, 0).familiarity is None


def test_a_checkpoint_keeps_it(cheap, tmp_path):
    pair = (PAIR[0], cheap)
    model = checkpoint.Checkpoint(pair, tuple(e.init(jax.random.key(0)) for e in pair), {}, {})
    checkpoint.save(tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model").experts
    rows = rows_of(vacancy())
    assert loaded[0].familiarity is None
    assert np.array_equal(loaded[1].familiarity.distance(rows), cheap.familiarity.distance(rows))


def test_a_damaged_one_is_refused(cheap):
    values = cheap.familiarity.to_dict()
    for wrong in (
        {**values, "limit": np.float32(np.nan)},
        {**values, "mean": values["mean"][:, :, :-1]},
        {**values, "more": 1},
        {name: value for name, value in values.items() if name != "known"},
    ):
        with pytest.raises(ValueError, match="familiarity"):
            familiarity.familiarity_from_dict(wrong)


def test_too_few_rows_are_refused():
    environments = environments_of([reference_from_atoms(SILICON)], PAIR, EnvironmentSettings(domain_rows=20))
    with pytest.raises(ValueError, match=r"at least 228 rows of a species.*got 40 .*domain_rows of"):
        with_domain(PAIR[1], environments, 0)


def test_seeds_make_the_same_domain():
    environments = environments_of(
        [reference_from_atoms(SILICON)], PAIR, EnvironmentSettings(domain_rows=150)
    )
    first, again, other = (with_domain(PAIR[1], environments, seed).familiarity for seed in (3, 3, 4))
    assert np.array_equal(first.mean, again.mean) and not np.array_equal(first.mean, other.mean)


def test_kinds_without_a_share_are_not_in_the_domain():
    environments = environments_of(
        [reference_from_atoms(SILICON)], PAIR, EnvironmentSettings(domain_rows=150)
    )
    only_crystal = environments._replace(
        settings=replace(environments.settings, surfaces=0.0, vacancies=0.0, interstitials=0.0)
    )
    count = partial(with_domain, PAIR[1])
    assert count(environments, 0).familiarity.mean.shape[0] == 4  # strained, vacancy, interstitial, surface
    assert count(only_crystal, 0).familiarity.mean.shape[0] == 1


def test_the_cheap_expert_learns_from_the_atoms_of_its_domain_alone(cheap):
    """A melt beside a crystal: the melt does not count for the cheap expert, the crystal does."""
    crystal = frame_from_atoms(hot(bulk("Si", a=5.47, cubic=True), 0.05))
    melt = frame_from_atoms(hot(bulk("Si", a=5.47, cubic=True), 0.8))
    labels = {"energy": -1.0, "forces": np.ones((8, 3)), "stress": np.zeros((3, 3))}
    batch = collate([crystal._replace(**labels), melt._replace(**labels)], SPECIES, CUTOFF)
    params = tuple(e.init(jax.random.key(0)) for e in PAIR)
    terms = jax.jit(partial(losses.joint_terms, (PAIR[0], cheap)))(params, batch)
    by_species = jax.jit(partial(losses.joint_terms, PAIR))(params, batch)
    assert terms.cheap.count.tolist() == [1, 24, 9] and by_species.cheap.count.tolist() == [2, 48, 18]
    assert int(terms.mismatch.count[0]) < 16 and terms.expensive.count.tolist() == [2, 48, 18]


def test_training_fits_and_keeps_a_domain(tmp_path):
    frame = frame_from_atoms(hot(bulk("Si", a=5.47, cubic=True), 0.05))
    data = dataset_from_frames([frame._replace(energy=-1.0, forces=np.ones((8, 3)))], SPECIES)
    model = cotrain.cotrain(
        PAIR,
        data,
        TrainSettings(steps=1, max_atoms=8),
        environments=EnvironmentSettings(domain_rows=150),
        references=[SILICON],
        folder=tmp_path,
        progress=False,
    )
    (loaded, again) = (checkpoint.load(tmp_path / "checkpoint.msgpack").cheap.expert, model.cheap.expert)
    rows = rows_of(vacancy())
    assert np.array_equal(loaded.familiarity.distance(rows), again.familiarity.distance(rows))
