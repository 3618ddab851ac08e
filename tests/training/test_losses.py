"""The joint loss, against finite differences and closed forms."""

import itertools
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from random_crystals import random_cell

from moe_md import experts
from moe_md.data.batching import collate
from moe_md.data.reading import Frame
from moe_md.data.structures import fcc_supercell
from moe_md.settings import LossWeights
from moe_md.training import losses

SPECIES = ("Pt", "C", "O")
CUTOFF = 4.2


@pytest.fixture(scope="module")
def pair():
    expensive = experts.allegro(
        SPECIES,
        CUTOFF,
        l_max=1,
        num_layers=1,
        num_scalar_features=8,
        num_tensor_features=4,
        avg_num_neighbors=18.0,
    )
    cheap = experts.power_spectrum(
        SPECIES, CUTOFF, l_max=2, num_channels=4, hidden=(8,), allowed_species=("Pt",)
    )
    return (expensive, cheap), tuple(e.init(jax.random.key(n)) for n, e in enumerate((expensive, cheap)))


def strained_cell(seed=0) -> Frame:
    return random_cell(np.random.default_rng(seed), max_strain=0.03, max_rattle=0.1)


def co_on_platinum(**labels) -> Frame:
    """Four platinum atoms in a line with CO at one end; the other end is beyond the cutoff from it."""
    positions = np.array(
        [[0, 0, 0], [2.6, 0.1, 0], [5.2, 0, 0.1], [7.8, 0, 0], [9.6, 0.2, 0], [10.7, 0, 0]], float
    )
    return Frame(positions, ("Pt",) * 4 + ("C", "O"), np.zeros((3, 3)), np.zeros(3, bool), **labels)


def batch_of(*frames, **shape):
    return jax.tree.map(jnp.asarray, collate(frames, SPECIES, CUTOFF, dtype=np.float64, **shape))


def predict(expert, params, batch):
    return jax.jit(partial(losses.predict, expert))(params, batch)


def joint_terms(experts, *arguments):
    return jax.jit(partial(losses.joint_terms, experts))(*arguments)


@pytest.mark.parametrize("index", [0, 1])
def test_forces_and_stress_are_derivatives_of_the_energy(pair, index):
    (expert, params), frame, h = (pair[0][index], pair[1][index]), fcc_supercell("Pt", 3.9, 1), 1e-5
    frame = frame._replace(positions=frame.positions + np.random.default_rng(1).normal(size=(4, 3)) * 0.1)
    prediction = jax.jit(partial(losses.predict, expert))

    def energy(positions, cell):
        return float(prediction(params, batch_of(frame._replace(positions=positions, cell=cell))).energy[0])

    predicted = prediction(params, batch_of(frame))
    for atom, axis in ((0, 0), (2, 1), (3, 2)):
        step = np.zeros((4, 3))
        step[atom, axis] = h
        slope = (energy(frame.positions + step, frame.cell) - energy(frame.positions - step, frame.cell)) / (
            2 * h
        )
        assert predicted.forces[atom, axis] == pytest.approx(-slope, abs=1e-7)
    for a, b in ((0, 0), (1, 2)):
        strain = np.zeros((3, 3))
        strain[a, b] += h / 2
        strain[b, a] += h / 2
        up, down = np.eye(3) + strain, np.eye(3) - strain
        slope = energy(frame.positions @ up, frame.cell @ up) - energy(
            frame.positions @ down, frame.cell @ down
        )
        volume = abs(np.linalg.det(frame.cell))
        assert predicted.stress[0, a, b] == pytest.approx(slope / (2 * h) / volume, abs=1e-8)


def test_padding_changes_no_term(pair):
    frames = [strained_cell(0), co_on_platinum(energy=-3.0, forces=np.ones((6, 3)))]
    plain = joint_terms(*pair, batch_of(*frames))
    rows = sum(len(f.symbols) for f in frames)
    padded = joint_terms(*pair, batch_of(*frames, n_rows=rows + 5, max_neighbors=90, n_frames=7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), plain, padded)


def test_rows_in_domain_have_no_other_species_within_the_cutoff(pair):
    batch = batch_of(co_on_platinum(), fcc_supercell("Pt", 4.0, 1))
    rows = losses.rows_in_domain(pair[0][1], batch)
    # C sits 1.8 Å from the last platinum and 4.4 Å (beyond the cutoff) from the one before.
    assert rows.tolist() == [True, True, False, False, False, False] + [True] * 4 or rows.tolist() == [
        True, True, True, False, False, False] + [True] * 4  # fmt: skip
    distance = np.linalg.norm(co_on_platinum().positions[2] - co_on_platinum().positions[4])
    assert bool(rows[2]) == (distance > CUTOFF)
    assert losses.frames_in_domain(rows, batch).tolist() == [False, True]


def test_one_expert_twice_has_no_mismatch(pair):
    expensive, params = pair[0][0], pair[1][0]
    terms = joint_terms(
        (expensive, expensive), (params, params), batch_of(strained_cell(3), fcc_supercell("Pt", 4.0, 1))
    )
    assert [float(x) for x in terms.mismatch[:5]] == [0.0] * 5
    assert int(terms.mismatch.count[1]) == 9 * (1 + int(strained_cell(3).pbc.all()))
    assert int(terms.mismatch.count[2]) == 3 * (4 + len(strained_cell(3).symbols))


def test_missing_labels_enter_no_mean(pair):
    labelled = co_on_platinum(energy=-20.0, forces=np.full((6, 3), 0.3))
    alone = joint_terms(*pair, batch_of(labelled))
    beside = joint_terms(*pair, batch_of(labelled, co_on_platinum()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), alone.expensive, beside.expensive)
    assert alone.expensive.count.tolist() == [1, 18, 0]
    # Of the cheap expert the forces of the two atoms far from C count, of which no row is out of its domain.
    assert alone.cheap.count.tolist() == [0, 6, 0]


def test_forces_in_the_domain_do_not_depend_on_rows_outside(pair):
    """What the cheap expert makes of rows outside its domain changes no force that is fitted."""
    (_, cheap), (_, params) = pair
    batch = batch_of(co_on_platinum(), fcc_supercell("Pt", 4.0, 1))
    rows = losses.rows_in_domain(cheap, batch)
    chosen = np.asarray(losses.forces_in_domain(cheap, rows, batch))
    whole = losses.predict(cheap, params, batch)
    g = jnp.where(rows[:, None, None], whole.partial_forces, 0.0)
    part = losses.assemble(whole.atom_energies, g, batch)
    changed = np.any(np.abs(np.asarray(part.forces - whole.forces)) > 1e-9, axis=1)
    assert chosen.tolist() == [True, True, False, False, False, False] + [True] * 4
    assert not changed[chosen].any() and changed[2:4].all()


def test_partial_force_term_is_the_fair_coin_average(pair):
    """Expected squared error of the mixed force over all assignments of a cell's rows."""
    batch = batch_of(fcc_supercell("Pt", 3.9, 1)._replace(positions=strained_4().positions))
    first, second = (predict(e, p, batch) for e, p in zip(*pair))
    squares = [
        jnp.sum((losses.mix(first, second, jnp.asarray(own), batch).forces - first.forces) ** 2)
        for own in itertools.product([True, False], repeat=4)
    ]
    # Force on each atom from the difference of each row.
    per_row = jnp.stack(
        [losses.mix(second, first, jnp.arange(4) == i, batch).forces - first.forces for i in range(4)]
    )
    closed = 0.25 * jnp.sum(jnp.sum(per_row, axis=0) ** 2) + 0.25 * jnp.sum(per_row**2)
    assert float(np.mean(squares)) == pytest.approx(float(closed), rel=1e-10)


def test_force_terms_are_mean_squares_of_their_definitions(pair):
    """Only frames in the domain count.

    The terms are forces of the other expert, and of a given mixture, less those of the first.
    """
    both, params = pair
    batch = batch_of(strained_4(), co_on_platinum())
    first, second = (predict(e, p, batch) for e, p in zip(both, params))
    assignment = jnp.arange(10) % 2 == 0
    found = joint_terms(both, params, batch, 1.0, assignment).mismatch
    assert int(found.count[2]) == 12
    assert float(found.forces) == pytest.approx(
        float(jnp.mean((second.forces - first.forces)[:4] ** 2)), rel=1e-12
    )
    mixed = losses.mix(first, second, assignment, batch).forces
    assert float(found.random_assignment) == pytest.approx(
        float(jnp.mean((mixed - first.forces)[:4] ** 2)), rel=1e-12
    )
    none = joint_terms(both, params, batch).mismatch
    assert float(none.random_assignment) == 0.0 and float(found.random_assignment) > 0.0
    weights = LossWeights(agree_forces=2.0, agree_random_assignment=5.0)
    terms = joint_terms(both, params, batch, 1.0, assignment)
    more = losses.joint_loss(weights, terms) - losses.joint_loss(LossWeights(), terms)
    assert float(more) == pytest.approx(
        2.0 * float(found.forces) + 5.0 * float(found.random_assignment), rel=1e-9
    )


def strained_4() -> Frame:
    frame = fcc_supercell("Pt", 3.9, 1)
    return frame._replace(positions=frame.positions + np.random.default_rng(7).normal(size=(4, 3)) * 0.15)


def test_gradient_of_the_loss_matches_finite_differences(pair):
    both, params = pair
    frame = strained_4()._replace(energy=-1.0, forces=np.full((4, 3), 0.2), stress=np.eye(3) * 0.01)
    batch = batch_of(frame, co_on_platinum(forces=np.full((6, 3), -0.1)))
    weights = LossWeights(agree_stress=10.0)

    def loss(p):
        return losses.joint_loss(weights, joint_terms(both, p, batch))

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    direction = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), params
    )
    h = 1e-6
    shifted = [jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction) for s in (1, -1)]
    slope = (loss(shifted[0]) - loss(shifted[1])) / (2 * h)
    gradient = jax.jit(jax.grad(loss))(params)
    product = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
    assert float(product) == pytest.approx(float(slope), rel=1e-6)


def test_weight_of_a_frame_scales_its_share_of_every_mean(pair):
    both, params = pair
    first = strained_4()._replace(energy=-1.0, forces=np.full((4, 3), 0.2), stress=np.eye(3) * 0.01)
    second = first._replace(positions=first.positions * 1.01, energy=-2.0)

    def loss(weights):
        batch = collate([first, second], SPECIES, CUTOFF, weights=weights, dtype=np.float64)
        return float(losses.joint_loss(LossWeights(), joint_terms(both, params, batch)))

    assert loss([1.0, 0.0]) > 0.0 and loss([1.0, 0.0]) != pytest.approx(loss([0.0, 1.0]))
    assert loss([3.0, 0.5]) == pytest.approx(3.0 * loss([1.0, 0.0]) + 0.5 * loss([0.0, 1.0]), rel=1e-12)


def test_gradient_scale_multiplies_the_gradient_of_agreement_for_the_expensive_expert(pair):
    both, params = pair
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    batch = batch_of(strained_4())  # without labels only agreement has a gradient

    def gradients(gradient_scale):
        def loss(p):
            return losses.joint_loss(LossWeights(), joint_terms(both, p, batch, gradient_scale))

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return float(value), *(jax.flatten_util.ravel_pytree(g)[0] for g in gradient)

    (value, expensive, cheap), (same, third, as_before), (_, none, _) = map(gradients, (1.0, 0.3, 0.0))
    assert value == pytest.approx(same, rel=1e-14) and float(jnp.linalg.norm(expensive)) > 0
    np.testing.assert_allclose(
        third, 0.3 * expensive, rtol=1e-9, atol=1e-12 * float(jnp.max(jnp.abs(expensive)))
    )
    np.testing.assert_allclose(as_before, cheap, rtol=1e-12)
    assert not none.any()


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match="agree_energy must not be negative, got -1"):
        LossWeights(agree_energy=-1.0)
