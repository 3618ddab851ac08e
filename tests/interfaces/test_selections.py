"""Regions by tag, by layer and around species, as ASE users choose atoms."""

import jax
import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.md.verlet import VelocityVerlet

import moe_md as mm
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.selections import around_species, by_layer, by_tag


def slab():
    """Four layers of platinum, tags 4 to 1 from the bottom, with an upright CO of tag 0."""
    atoms = fcc111("Pt", (2, 2, 4), a=3.98, vacuum=6.0)
    add_adsorbate(atoms, molecule("CO", positions=[[0, 0, 1.15], [0, 0, 0]]), 1.9, "ontop", mol_index=1)
    return atoms


def test_atoms_with_the_tags_go_to_expert_0():
    atoms = slab()
    np.testing.assert_array_equal(by_tag(0)(atoms), [1] * 16 + [0] * 2)
    np.testing.assert_array_equal(by_tag([0, 1])(atoms), np.where(atoms.get_tags() <= 1, 0, 1))
    assert by_tag(np.array([4]))(atoms).sum() == 14


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_follow_heights_along_any_axis(axis):
    atoms = bulk("Pt", a=4.0, cubic=True).repeat(2)  # four layers along each axis, 2 Å apart
    atoms.rattle(0.02, seed=0)
    height = np.round(atoms.positions[:, axis] / 2).astype(int)
    np.testing.assert_array_equal(by_layer(1, axis)(atoms), np.where(height == 3, 0, 1))
    np.testing.assert_array_equal(by_layer(3, axis)(atoms), np.where(height >= 1, 0, 1))
    np.testing.assert_array_equal(by_layer(2, axis, bottom=True)(atoms), np.where(height <= 1, 0, 1))


def test_layers_of_a_skewed_cell_with_an_adsorbate():
    """An upright CO is two layers; the cell's first two vectors are not orthogonal."""
    atoms = slab()
    np.testing.assert_array_equal(by_layer(3)(atoms), np.where(atoms.get_tags() <= 1, 0, 1))


def test_the_assignment_stays_when_atoms_move():
    atoms, assign = slab(), by_layer(2)
    before = assign(atoms)
    atoms.positions[-2:, 2] -= 12.0
    np.testing.assert_array_equal(assign(atoms), before)
    assert (by_layer(2)(atoms) != before).any()
    np.testing.assert_array_equal(assign(atoms[:16]), np.where(np.isin(atoms.get_tags()[:16], (1, 2)), 0, 1))
    assign(atoms)[:] = 7  # the returned array is a copy
    assert set(assign(atoms)) == {0, 1}


def test_around_species_is_the_region_of_their_atoms():
    region = around_species(("C", "O"), 5.0, 1.5)(slab())
    np.testing.assert_array_equal(region.seeds, [16, 17])
    assert (float(region.r_core), float(region.r_blend)) == (5.0, 1.5)
    np.testing.assert_array_equal(around_species("Pt", 5.0, 1.5)(slab()).seeds, np.arange(16))


def lennard_jones_pair():
    experts = [mm.experts.lennard_jones(("Pt", "C", "O"), 5.0, epsilon=e, sigma=2.5) for e in (0.2, 0.25)]
    return mm.Checkpoint(tuple(experts), tuple(e.init(jax.random.key(0)) for e in experts), {}, {})


@pytest.mark.parametrize(
    "region",
    [by_tag((0, 1)), by_layer(3), around_species(("C", "O"), 2.5, 1.5)],
    ids=["tag", "layer", "species"],
)
def test_calculators_take_them_and_energy_is_conserved(region):
    atoms = fcc111("Pt", (4, 4, 3), a=3.95, vacuum=6.0)
    add_adsorbate(atoms, "C", 2.3, "fcc")
    add_adsorbate(atoms, "O", 2.8, "ontop", offset=(2, 2))
    atoms.rattle(0.1, seed=1)
    atoms.calc = MixtureCalculator(lennard_jones_pair(), region)
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    dynamics.attach(lambda: energies.append((atoms.get_total_energy(), atoms.get_kinetic_energy())))
    dynamics.run(40)
    total, kinetic = np.transpose(energies)
    assert np.ptp(kinetic) > 0.1 and np.ptp(total) < 0.02 * np.ptp(kinetic)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: by_tag(7)(slab()),
            r"tags must be tags of the atoms, \[0, 1, 2, 3, 4\], got \[7\]",
        ),
        (lambda: by_tag(()), r"tags must be one integer or several, got \(\)"),
        (lambda: by_tag(1.5), "tags must be one integer or several, got 1.5"),
        (
            lambda: by_layer(7)(slab()),
            "n_layers must be at most the 6 layers of these atoms along axis 2, got 7",
        ),
        (lambda: by_layer(1)(slab()[:0]), "n_layers must be at most the 0 layers"),
        (lambda: by_layer(0), "n_layers must be a whole number, at least 1, got 0"),
        (lambda: by_layer(1, 3), "axis must be 0, 1 or 2, got 3"),
        (lambda: by_layer(1, tolerance=0.0), "tolerance must be positive, got 0.0"),
        (lambda: around_species("N", 5.0, 1.0)(slab()), "species must be among the atoms, Pt16.*, got N"),
        (lambda: around_species(("C", "Ptt"), 5.0, 1.0), "species must be chemical symbols"),
        (lambda: around_species((), 5.0, 1.0), "species must be chemical symbols"),
        (lambda: around_species("C", 5.0, 0.0), "r_blend positive"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
