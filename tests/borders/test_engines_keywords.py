"""Keywords and keys that nothing reads are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

import moe_md as mm
from moe_md.neighbors.rows import rows_from_neighbor_list
from moe_md.regions.serialize import region_from_dict


def mixture():
    """Energy and neighbours of two atoms of platinum."""
    expert = mm.experts.lennard_jones(("Pt",), 4.0, epsilon=0.2, sigma=2.5)
    displacement_fn, _ = space.periodic(20.0)
    R = jnp.array([[0.0, 0.0, 0.0], [2.7, 0.0, 0.0]])
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        20.0,
        mm.Checkpoint((expert,), (expert.init(None),), {}, {}).potentials,
        np.zeros(2, int),
        mm.regions.fixed([0, 0], 1),
    )
    return energy_fn, R, neighbor_fn.allocate(R)


def test_the_energy_refuses_unknown_keywords_and_takes_those_of_jax_md():
    energy_fn, R, neighbor = mixture()
    assert jax.eval_shape(lambda: energy_fn(R, neighbor, kT=0.1, pressure=0.0)).shape == ()
    with pytest.raises(TypeError, match="energy_fn has no keyword 'parms': use 'params'"):
        energy_fn(R, neighbor, parms=None)
    with pytest.raises(TypeError, match="energy_fn has no keyword 'regions': use 'region'"):
        energy_fn(R, neighbor, regions=None)


def test_rows_refuse_keywords_that_a_displacement_function_would_ignore():
    displacement_fn, _ = space.periodic(5.0)
    R, idx = jnp.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]), jnp.array([[1], [0]])
    arguments = (R, jnp.zeros(2, int), idx, displacement_fn, jnp.arange(2))
    assert rows_from_neighbor_list(*arguments).displacement[0, 0, 0] == -1.0
    with pytest.raises(TypeError, match="has no keyword 'bx': use 'box'"):
        rows_from_neighbor_list(*arguments, bx=6.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "around", "seeds": [0], "r_core": 2.0, "r_blend": 1.0, "r_cut": 5.0},
            r"kind around must have the keys seeds, r_core, r_blend, also got \['r_cut'\]",
        ),
        ({"kind": "fixed", "assignment": [0], "n_experts": 2, "weights": [[1.0]]}, r"got \['weights'\]"),
        (
            {"kind": "complement", "region": {"kind": "fixed", "assignment": [0], "n_experts": 2, "n": 1}},
            r"kind fixed .* also got \['n'\]",
        ),
        (
            {"kind": "weighted", "weights": [[0.5, 0.6]]},
            r"add up to 1, got shape \(1, 2\) and \[\[0.5, 0.6\]\]",
        ),
        ({"kind": "weighted", "weights": [[1.5, -0.5]]}, "weights must be one row for each atom"),
        ({"kind": "weighted", "weights": [0.5, 0.5]}, "weights must be one row for each atom"),
        ({"kind": "weighted", "weights": [[np.nan, 1.0]]}, "weights must be finite numbers"),
    ],
)
def test_regions_of_files_are_understood_whole(values, message):
    with pytest.raises(ValueError, match=message):
        region_from_dict(values)
