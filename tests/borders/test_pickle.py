"""Checkpoints, experts, regions and calculators pickle, with their energies."""

import copy
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import fcc111
from contract import (
    ATOMS,
    CUTOFF,
    POSITION,
    SPECIES,
    cluster_rows,
    randomized,
    small_allegro,
    small_density_moments,
    small_embedded_atom,
    small_lennard_jones,
    small_nequip,
    small_power_spectrum,
    without_functions,
)
from programs import ROOT

import moe_md as mm
from moe_md.experts.base import Expert
from moe_md.interfaces.ase import MixtureCalculator

BUILDERS = (
    small_allegro,
    small_density_moments,
    small_embedded_atom,
    small_lennard_jones,
    small_nequip,
    small_power_spectrum,
)


def again(value):
    """From its pickle."""
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_experts_pickle(build):
    expert = build()
    params, rows = randomized(expert), cluster_rows(POSITION, ATOMS)
    copied = again(expert)
    assert without_functions(copied) == without_functions(expert)
    found, expected = (jax.jit(e.atom_energies)(params, rows) for e in (copied, expert))
    np.testing.assert_array_equal(found, expected)
    assert again(expert).atom_energies is copied.atom_energies  # one program serves all pickles
    assert again(copied).atom_energies is copied.atom_energies


def test_copies_of_experts_share_their_functions():
    expert = small_lennard_jones()
    for copied in (copy.copy(expert), copy.deepcopy(expert)):
        assert copied == expert
    assert copied.config is not expert.config


def harmonic(params, rows):
    """An energy that no builder makes."""
    return params["k"] * jnp.sum(jnp.where(rows.mask[..., None], rows.displacement**2, 0.0), axis=(1, 2))


def test_experts_made_by_hand_pickle_by_the_names_of_their_functions():
    expert = Expert(jax.random.key, harmonic, CUTOFF, SPECIES, SPECIES, {})
    assert again(expert) == expert
    changed = small_lennard_jones()._replace(atom_energies=harmonic)  # its config describes another one
    with pytest.raises((AttributeError, pickle.PicklingError), match="lennard_jones.<locals>.init"):
        pickle.dumps(changed)
    replaced = small_lennard_jones()._replace(allowed_species=("Pt",))
    assert again(replaced).allowed_species == ("Pt",)


def test_pickles_keep_float64_where_jax_reads_float32():
    content = pickle.dumps(
        (mm.Potential(None, {"a": jnp.asarray(0.1)}), mm.regions.around([0], r_core=0.1, r_blend=0.7))
    )
    with jax.enable_x64(False):
        potential, region = pickle.loads(content)
    assert potential.params["a"] == 0.1 and potential.params["a"].dtype == np.float64
    assert region.r_core == 0.1 and region.r_core.dtype == np.float64


def test_regions_pickle():
    expert = small_power_spectrum()
    trees = [randomized(expert, seed) for seed in (0, 1)]
    around = mm.regions.around([3], 2.0, 2.0)
    region = mm.regions.union(
        around,
        mm.regions.complement(around),
        mm.regions.committee(expert, trees, 0.1, 0.2),
        mm.regions.coordination(4.0, 8.0, r_full=2.9, r_none=3.0),
        mm.regions.fixed([0, 1, 1, 0]),
    )
    copied = again(region)
    assert jax.tree.structure(copied) == jax.tree.structure(again(copied))
    for mine, theirs in zip(jax.tree.leaves(region), jax.tree.leaves(copied), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def slab():
    """A small slab with one adatom."""
    atoms = fcc111("Pt", (2, 2, 3), a=3.97, vacuum=6.0)
    atoms.rattle(0.05, seed=1)
    return atoms


def calculator():
    """Two experts that differ; a dynamic region."""
    built = (mm.experts.lennard_jones(("Pt",), 5.0, epsilon=0.6, sigma=2.5), small_platinum())
    checkpoint = mm.Checkpoint(built, tuple(e.init(jax.random.key(0)) for e in built), {}, {})
    return MixtureCalculator(checkpoint, mm.regions.around([0], 2.0, 2.0))


def small_platinum():
    return mm.experts.embedded_atom(("Pt",), 4.0, num_bessels=2, num_densities=1, hidden=(4,))


def test_calculators_pickle_before_and_after_a_calculation():
    atoms, calc = slab(), calculator()
    before = again(calc)
    atoms.calc = calc
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    after = again(atoms)
    assert after.calc.results["energy"] == energy  # what was computed stays
    for copied in (before, after.calc, copy.deepcopy(calc)):
        atoms.calc = copied
        copied.reset()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-12)


def test_calculators_reach_spawned_processes(tmp_path):
    """A process that has imported nothing, with jax's default float32."""
    atoms = slab()
    atoms.calc = calculator()
    unused = slab()
    unused.calc = calculator()
    path = tmp_path / "atoms.pickle"
    path.write_bytes(pickle.dumps((atoms, unused)))
    program = (
        "import pickle, sys\n"
        "for atoms in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    print(repr(float(atoms.get_potential_energy())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    energies = [float(line) for line in done.stdout.split()]
    np.testing.assert_allclose(energies, atoms.get_potential_energy(), atol=1e-10)
    assert len(energies) == 2
