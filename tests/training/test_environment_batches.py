"""Batches of unlabelled environments: their seeds, their weights, and what the loss takes from them."""

import jax
import numpy as np
import pytest
from ase.build import bulk

from moe_md import experts
from moe_md.data.references import reference_from_atoms
from moe_md.settings import EnvironmentSettings
from moe_md.training.inputs import environment_batch, environments_of
from moe_md.training.losses import joint_terms

PLATINUM = reference_from_atoms(bulk("Pt", a=3.98))
NONE = EnvironmentSettings(environment_rows=0, perfect_rows=0)


@pytest.fixture(scope="module")
def pair():
    return tuple(
        experts.power_spectrum(("Pt", "C"), 4.0, l_max=1, num_channels=4, hidden=(n,)) for n in (6, 8)
    )


def test_unlabelled_batches_follow_from_seed_and_step(pair):
    environments = environments_of([PLATINUM], pair, EnvironmentSettings())
    a, b, c = (environment_batch(environments, 0, step) for step in (3, 3, 4))
    np.testing.assert_array_equal(a.rows.displacement, b.rows.displacement)
    assert not np.array_equal(a.rows.displacement, c.rows.displacement)
    assert not a.energy_mask.any() and not a.forces_mask.any()


def test_perfect_and_distorted_rows_count_alike_whatever_the_cell(pair):
    """The sum of the weights of rows is half that of all rows, for either; `perfect_weight` times for one."""
    silicon = environments_of(
        [reference_from_atoms(bulk("Pt", "diamond", a=5.4))],  # two atoms in a cell
        pair,
        EnvironmentSettings(environment_rows=10, perfect_rows=5, perfect_weight=20.0),
    )
    batch = environment_batch(silicon, 0, 0)
    rows = np.append(batch.weight, 0.0)[batch.frame] * batch.row_mask
    perfect = np.append(batch.n_atoms, 0.0)[batch.frame] > 0
    assert perfect.sum() == 4 and (batch.row_mask & ~perfect).sum() == 10
    assert rows[perfect].sum() == pytest.approx(20 * 14 / 2) and rows[~perfect].sum() == pytest.approx(14 / 2)


@pytest.mark.parametrize("rows, perfect", [(3, 0), (0, 2)])
def test_one_kind_of_environments_alone(pair, rows, perfect):
    settings = EnvironmentSettings(environment_rows=rows, perfect_rows=perfect)
    batch = environment_batch(environments_of([PLATINUM], pair, settings), 0, 0)
    assert batch.row_mask.sum() == rows + perfect
    used = batch.weight[np.unique(batch.frame[batch.row_mask])]
    np.testing.assert_allclose(used, settings.perfect_weight if perfect else 1.0)
    assert environments_of([PLATINUM], pair, NONE) is None and environment_batch(None, 0, 0) is None


def test_perfect_crystals_alone_need_a_crystal(pair):
    melt = bulk("Pt", cubic=True) * 2
    melt.rattle(0.5, seed=0)
    settings = EnvironmentSettings(environment_rows=0)
    with pytest.raises(ValueError, match="environment_rows must be positive where no reference is a crystal"):
        environments_of([reference_from_atoms(melt)], pair, settings)


def test_rows_of_incomplete_frames_enter_agreement_on_energies_and_partial_forces_only(pair):
    """Forces and stress of a few rows of a crystal are not those of a crystal."""
    params = tuple(e.init(jax.random.key(k)) for k, e in enumerate(pair))
    alone = environments_of([PLATINUM], pair, EnvironmentSettings(perfect_rows=0))
    terms = joint_terms(pair, params, environment_batch(alone, 0, 0))
    assert terms.mismatch.count.tolist() == [8, 0, 0] and not terms.expensive.count.any()
    assert terms.mismatch.energy > 0 and terms.mismatch.partial_forces > 0 and terms.mismatch.stress == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_strain": -0.1}, r"max_strain must be in \[0, 0.3\), got -0.1"),
        ({"perfect_weight": -1.0}, "perfect_weight must not be negative, got -1.0"),
        ({"vacancies": 0.6, "surfaces": 0.6}, "surfaces must add up to at most 1, .* got 1.35"),
        ({"references": ["a.cif", 2]}, "references must be of type str"),
    ],
)
def test_settings_of_environments_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        EnvironmentSettings(**change)
