"""Arguments of runs that are refused, and atoms that leave a region."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(position=np.zeros((3, 2))), r"position must have shape \[n_atoms, 3\], got \(3, 2\)"),
        (dict(position=np.zeros((72, 3), int)), "position must be floating point, got int"),
        (dict(position=np.full((72, 3), np.nan)), "position must be finite"),
        (dict(masses=np.ones(3)), r"masses must have shape \[72\] \(amu\), got \(3,\)"),
        (dict(masses=None), "masses must have shape"),
        (dict(masses=-np.ones(72)), "masses must be positive"),
        (dict(temperature_K=-1.0), "temperature_K must not be negative, got -1.0"),
        (dict(temperature_K=None), "either velocity or temperature_K, got neither"),
        (dict(velocity=np.zeros((72, 3))), "either velocity or temperature_K, got both"),
        (dict(temperature_K=None, velocity=np.zeros(3)), r"velocity must be finite and have shape \[72, 3\]"),
        (dict(key=None), "key must be a random key"),
        (dict(n_steps=-1), "n_steps must be a whole number, at least 0, got -1"),
        (dict(n_steps=1.5), "n_steps must be a whole number"),
        (dict(chunk_steps=0), "chunk_steps must be a whole number, at least 1, got 0"),
    ],
)
def test_bad_input(slab, change, message):
    atoms, _, _, shift_fn = slab
    good = dict(
        position=atoms.positions,
        masses=atoms.get_masses(),
        temperature_K=300.0,
        key=jax.random.key(0),
        n_steps=1,
    )
    with pytest.raises(ValueError, match=message):
        run_from(None, None, simulate.nve(shift_fn, 1.0), **{**good, **change})


def test_bad_settings(slab, warm):
    _, _, _, shift_fn = slab
    with pytest.raises(ValueError, match="timestep_fs must be positive, got 0"):
        simulate.nve(shift_fn, 0)
    with pytest.raises(ValueError, match="temperature_K must not be negative, got -5"):
        simulate.langevin(shift_fn, 1.0, -5, 0.01)
    with pytest.raises(ValueError, match="friction_per_fs must be positive, got 0"):
        simulate.langevin(shift_fn, 1.0, 300, 0)
    with pytest.raises(ValueError, match="force_tolerance must be positive"):
        simulate.relax(None, None, shift_fn, np.zeros((1, 3)), force_tolerance=0.0)
    with pytest.raises(ValueError, match="state must be of simulate.start or of an earlier result, got int"):
        simulate.run(None, None, simulate.nve(shift_fn, 1.0), 3, n_steps=1)
    with pytest.raises(ValueError, match="key must be a random key for Langevin"):
        simulate.run(None, None, simulate.langevin(shift_fn, 1.0, 300.0, 0.01), warm.state, n_steps=1)


def test_an_atom_that_wanders_out_of_its_region_is_warned_of_once():
    """C leaves the half of the crystal that the expert of all species owns; the other knows Pt alone."""
    species, cutoff = ("Pt", "C"), 3.0
    experts = [
        mm.experts.lennard_jones(species, cutoff, epsilon=0.01, sigma=1.5, allowed_species=domain)
        for domain in (species, ("Pt",))
    ]
    x, y, z = np.meshgrid(np.arange(8), np.arange(3), np.arange(3), indexing="ij")
    position = 2.5 * np.stack([x, y, z], axis=-1).reshape(-1, 3)
    carbon = 0
    position[carbon] = [2.5, 1.25, 1.25]  # in a channel along x
    box = 2.5 * np.array([8.0, 3.0, 3.0])
    displacement_fn, shift_fn = space.periodic(box)
    owner = (position[:, 0] > 8.0).astype(int)
    kinds = np.zeros(len(position), int)
    kinds[carbon] = 1
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        kinds,
        mm.regions.fixed(owner),
    )
    velocity = np.zeros_like(position)
    velocity[carbon, 0] = 1.0
    masses = np.where(kinds == 1, 12.0, 195.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        simulate.run(
            *fns,
            simulate.nve(shift_fn, 1.0),
            simulate.start(
                simulate.nve(shift_fn, 1.0), jnp.asarray(position), masses=masses, velocity=velocity
            ),
            n_steps=5,
        )
        assert not [w for w in told if "outside its domain" in str(w.message)]
        simulate.run(
            *fns,
            simulate.nve(shift_fn, 1.0),
            simulate.start(
                simulate.nve(shift_fn, 1.0), jnp.asarray(position), masses=masses, velocity=velocity
            ),
            n_steps=80,
            chunk_steps=10,
        )
    (warning,) = [w for w in told if "outside its domain" in str(w.message)]
    assert "expert 1" in str(warning.message)
