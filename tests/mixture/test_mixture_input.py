"""What a mixture refuses, and where it warns."""

import warnings

import contract
import jax.numpy as jnp
import numpy as np
import pytest
from contract import ATOMS, BOX, OWNERS, POSITION, randomized
from jax_md import space
from small_mixtures import LJ, build, displacement_fn

import moe_md as mm
from moe_md import experts as mm_experts
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors.neighbor_list import perpendicular_widths
from moe_md.regions import around, fixed

# Domains.


@pytest.fixture
def metal():
    return mm_experts.lennard_jones(contract.SPECIES, 3.0, epsilon=0.4, sigma=1.6, allowed_species=("Pt",))


def test_a_region_that_leaves_foreign_species_to_a_cheap_expert_warns(metal):
    with pytest.warns(
        UserWarning, match=r"region gives expert 1 3 atoms outside its domain.* may meet Pt alone.* 3.0 Å"
    ):
        build((LJ, metal), [randomized(LJ), randomized(metal)], fixed([1, 0, 0, 1, 0, 1]))
    with pytest.warns(
        UserWarning, match="region gives expert 1 1 atoms"
    ):  # an atom that is itself out of domain
        far = np.concatenate([POSITION[:1], POSITION[:1] + 4.3])
        build(
            (LJ, metal),
            [randomized(LJ), randomized(metal)],
            fixed([0, 1]),
            species=np.array([0, 1]),
            position=far,
        )


def test_a_region_inside_every_domain_does_not_warn(metal):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Beyond the expert's cutoff, in the skin, foreigners do not count.
        skin = np.array([[0.0, 0, 0], [2.0, 0, 0], [-3.2, 0, 0]])
        params = [randomized(LJ), randomized(metal)]
        _, _, nbrs = build((LJ, metal), params, fixed([1, 1, 0]), species=np.array([0, 0, 1]), position=skin)
        assert 2 in np.asarray(nbrs.idx[0])
        build((metal, LJ), [randomized(metal), randomized(LJ)], fixed([1] * 6))


# Input.


def refused(
    message, *, experts=(LJ, LJ), params=None, species=ATOMS, region=None, position=POSITION, **kwargs
):
    params = [randomized(e) for e in experts] if params is None else params
    with pytest.raises(ValueError, match=message):
        region = fixed(OWNERS) if region is None else region
        neighbor_fn, _ = mixture_neighbor_list(
            displacement_fn, BOX, mm.experts.potentials(experts, params), species, region, **kwargs
        )
        neighbor_fn.allocate(jnp.asarray(position))


def test_bad_experts_are_refused():
    other = mm_experts.lennard_jones(("C", "Pt"), 3.0)
    refused(r"potentials must share one species tuple, got .*'C', 'Pt'", experts=(LJ, other))
    refused("experts and params must be sequences of equal length.* got 2 and 1", params=[randomized(LJ)])
    refused(r"potentials must be pairs \(expert, params\), at least one, got \(\)", experts=())


def test_bad_species_are_refused():
    refused(r"species must index \('Pt', 'C'\), 0 to 1, got 0 to 2", species=np.array([0, 1, 2, 0, 0, 0]))
    refused("species must index .* got -1 to 1", species=np.array([0, 1, -1, 0, 0, 0]))
    refused("species must be a vector of integers.* dtype float64", species=ATOMS.astype(float))
    refused(r"species must be a vector of integers.*\(6, 1\)", species=ATOMS[:, None])


def test_bad_positions_are_refused():
    refused(r"position must have shape \[6, 3\], got \(5, 3\)", position=POSITION[:5])
    refused(r"position must have shape \[6, 3\], got \(6, 2\)", position=POSITION[:, :2])
    refused("position must be finite", position=np.where(POSITION > 2.4, np.nan, POSITION))


def test_bad_regions_are_refused():
    refused(
        r"region must have gates of shape \[n_atoms, n_experts\] = \[6, 2\], got \[5, 2\]",
        region=fixed([0, 0, 1, 1, 1]),
    )
    refused(r"region must have gates of shape .* = \[6, 2\], got \[6, 3\]", region=fixed(OWNERS, n_experts=3))


def test_a_seed_that_is_no_atom_is_refused():
    refused("seeds must be atoms, 0 to 5, got 6", region=around([6], 1.0, 1.0))


@pytest.mark.parametrize(
    "box", [6.0, np.array([20.0, 5.9, 20.0]), np.array([[20.0, 30, 0], [0, 8, 0], [0, 0, 20]])]
)
def test_a_box_too_small_for_the_cutoff_is_refused(box):
    with pytest.raises(
        ValueError, match=r"box must be wider than twice the cutoff, 2 x 3.0 Å, .* got widths"
    ):
        mixture_neighbor_list(
            displacement_fn, box, mm.experts.potentials((LJ, LJ), [randomized(LJ)] * 2), ATOMS, fixed(OWNERS)
        )


def test_a_box_just_wide_enough_is_taken():
    mixture_neighbor_list(
        space.periodic(6.01)[0],
        6.01,
        mm.experts.potentials((LJ, LJ), [randomized(LJ)] * 2),
        ATOMS,
        fixed(OWNERS),
    )
    # Columns are the vectors: perpendicular widths, not lengths.
    box = np.array([[4.0, 3.0, 0], [0, 4.0, 0], [0, 0, 5.0]])
    np.testing.assert_allclose(perpendicular_widths(box), [3.2, 4.0, 5.0])
    np.testing.assert_allclose(perpendicular_widths(7.0), [7.0] * 3)


def test_a_negative_skin_is_refused():
    refused(r"dr_threshold must not be negative \(Å\), got -0.1", dr_threshold=-0.1)
