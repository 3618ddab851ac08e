"""Arguments of builders of regions, experts, mixtures and runs that do not fit; see `bad_input`."""

import contextlib
import math

import flax.serialization
import jax
import numpy as np
from bad_input import PAIR, examples, odd, valid_or_clear
from hypothesis import given
from hypothesis import strategies as st
from jax_md import space
from trajectories import run_from

import moe_md as mm

POSITION = np.array([[1.0, 1.0, 1.0], [2.5, 1.0, 1.0], [1.0, 2.5, 1.0], [7.0, 7.0, 7.0]])
BASE = {
    mm.regions.fixed: {"assignment": [0, 1, 1, 0], "n_experts": 2},
    mm.regions.slab: {"position": POSITION, "lower": 0.0, "upper": 2.0, "axis": 2, "n_experts": 2},
    mm.regions.sphere: {
        "position": POSITION,
        "center": [1.0, 1.0, 1.0],
        "radius": 2.0,
        "blend": 1.0,
        "displacement_fn": None,
    },
    mm.regions.around: {"seeds": [0, 1], "r_core": 2.0, "r_blend": 1.0},
    mm.regions.coordination: {"low": 1.0, "high": 2.0, "r_full": 1.6, "r_none": 2.4, "slack": 0.1},
    mm.regions.descriptor: {
        "scalar_fn": lambda _, rows: jax.numpy.sum(rows.mask, axis=1) * 0.5,
        "low": 1.0,
        "high": 2.0,
        "cutoff": 2.0,
    },
}


def check_gate(builder, made) -> None:
    """Assert that the gate of a region is finite, not negative, and sums to one."""
    free, _ = space.free()
    everyone = jax.numpy.asarray([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    near = None
    if builder in (mm.regions.coordination, mm.regions.descriptor):
        near = mm.regions.RegionNeighbors(jax.numpy.zeros(4, int), everyone, np.inf, None)
    gate = np.asarray(made.gate(jax.numpy.asarray(POSITION), free, near))
    assert np.isfinite(gate).all() and (gate >= 0).all()
    np.testing.assert_allclose(gate.sum(axis=1), 1.0, atol=1e-6)


CASES = [(builder, name) for builder, base in BASE.items() for name in base]


@examples(150)
@given(st.sampled_from(CASES), odd)
def test_arguments_of_regions(case, value):
    builder, name = case
    made = valid_or_clear(lambda: builder(**{**BASE[builder], name: value}), name)
    if made is not None and name not in ("assignment", "position", "seeds", "scalar_fn"):
        check_gate(builder, made)


@examples(20)
@given(st.sampled_from((mm.regions.union, mm.regions.complement, mm.regions.nested, mm.regions.custom)), odd)
def test_arguments_of_regions_of_regions(builder, value):
    names = ("region", "gate_fn")
    valid_or_clear(lambda: builder(value), *names)


SHIFT = space.free()[1]
SPECIES_OF = np.array([0, 0, 1, 0])
EXPERT_BASE = {
    mm.experts.lennard_jones: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "epsilon": 1.0,
        "sigma": 1.0,
        "onset": 2.0,
        "allowed_species": None,
    },
    mm.experts.power_spectrum: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "l_max": 1,
        "num_bessels": 2,
        "num_channels": 2,
        "hidden": (3,),
        "polynomial_cutoff_p": 6.0,
        "avg_num_neighbors": 10.0,
        "allowed_species": None,
    },
    mm.experts.embedded_atom: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "num_bessels": 2,
        "num_densities": 1,
        "hidden": (3,),
        "polynomial_cutoff_p": 6.0,
        "avg_num_neighbors": 10.0,
        "allowed_species": None,
    },
    mm.experts.density_moments: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "num_radial": (2, 1),
        "hidden": (3,),
        "cutoff_power": 4,
        "num_species_mixtures": None,
        "pair_cutoffs": None,
        "zbl": False,
        "allowed_species": None,
    },
    mm.experts.allegro: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "l_max": 1,
        "parity": True,
        "num_layers": 1,
        "num_scalar_features": 4,
        "num_tensor_features": 2,
        "num_bessels": 2,
        "polynomial_cutoff_p": 6.0,
        "scalar_embed_mlp": (3,),
        "allegro_mlp": (3,),
        "readout_mlp": (3,),
        "avg_num_neighbors": 10.0,
        "path_channel_coupling": True,
        "nonlinearity": "silu",
        "pair_cutoffs": None,
        "zbl": False,
        "allowed_species": None,
    },
}
NEQUIP_BASE = {
    "species": ("Pt", "C"),
    "cutoff": 3.0,
    "l_max": 1,
    "num_layers": 1,
    "hidden_irreps": "4x0e",
    "num_bessels": 2,
    "radial_width": 2,
    "radial_depth": 1,
    "avg_num_neighbors": 10.0,
    "allowed_species": None,
}
EXPERT_CASES = [(builder, name) for builder, base in EXPERT_BASE.items() for name in base]


@examples(60)
@given(st.sampled_from(sorted(NEQUIP_BASE)), odd)
def test_arguments_of_nequip(name, value):
    """Builds the expert only: jax-md takes long to initialise it."""
    valid_or_clear(lambda: mm.experts.nequip(**{**NEQUIP_BASE, name: value}), name)


@examples(150)
@given(st.sampled_from(EXPERT_CASES), odd)
def test_arguments_of_experts(case, value):
    builder, name = case
    made = valid_or_clear(lambda: builder(**{**EXPERT_BASE[builder], name: value}), name)
    if made is not None:
        assert (
            math.isfinite(made.cutoff) and made.cutoff > 0 and all(isinstance(s, str) for s in made.species)
        )
        shapes = jax.eval_shape(made.init, jax.random.key(0))
        flax.serialization.msgpack_serialize(made.config)
        if sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) < 10_000:
            assert jax.tree.map(
                np.shape, mm.experts.build(made.config).init(jax.random.key(0))
            ) == jax.tree.map(lambda x: x.shape, shapes)


PERIODIC = space.periodic(10.0)[0]
MIXTURE_BASE = {
    "box": 10.0,
    "potentials": tuple((e, e.init(jax.random.key(0))) for e in PAIR),
    "species": SPECIES_OF,
    "region": mm.regions.fixed([0, 1, 1, 0]),
    "dr_threshold": 0.4,
    "capacity_multiplier": 1.25,
    "chunk_size": 64,
}


@examples(80)
@given(st.sampled_from(sorted(MIXTURE_BASE)), odd)
def test_arguments_of_mixtures(name, value):
    made = valid_or_clear(lambda: mm.mixture_neighbor_list(PERIODIC, **{**MIXTURE_BASE, name: value}), name)
    if made is not None:
        neighbor_fn, _ = made
        # A wrong number of species shows as a wrong number of positions.
        valid_or_clear(lambda: neighbor_fn.allocate(jax.numpy.asarray(POSITION)), name, "position")


RUN_BASE = {
    "n_steps": 0,
    "position": POSITION,
    "masses": np.ones(4),
    "temperature_K": 300.0,
    "key": jax.random.key(0),
    "velocity": None,
    "chunk_steps": 5,
    "max_reallocations": 2,
}


class Started(Exception):
    """The arguments were accepted."""


class NeighborFn:
    @staticmethod
    def allocate(position, **_):
        assert position.shape == (len(position), 3) and np.isfinite(position).all()
        raise Started


@examples(100)
@given(st.sampled_from(("nve", "langevin", "run")), st.data())
def test_arguments_of_dynamics(what, data):
    if what == "run":
        name = data.draw(st.sampled_from(sorted(RUN_BASE)))
        arguments = {**RUN_BASE, name: data.draw(odd)}
        with contextlib.suppress(Started):
            valid_or_clear(lambda: run_from(NeighborFn, None, mm.simulate.nve(SHIFT, 1.0), **arguments), name)
        return
    base = {"timestep_fs": 1.0} | (
        {"temperature_K": 300.0, "friction_per_fs": 0.01} if what == "langevin" else {}
    )
    name, value = data.draw(st.sampled_from(sorted(base))), data.draw(odd)
    made = valid_or_clear(lambda: getattr(mm.simulate, what)(SHIFT, **{**base, name: value}), name)
    assert made is None or math.isfinite(getattr(made, name))
