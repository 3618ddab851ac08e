"""Forces, virial and stress against autodiff, finite differences and ASE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from contract import close, randomized, small_power_spectrum

from moe_md.derivatives import forces, virial
from moe_md.experts import energies_and_partial_forces, lennard_jones
from moe_md.experts.lennard_jones import lennard_jones_energies
from moe_md.neighbors.rows import Neighborhood, rows_from_images

EPSILON, SIGMA, ONSET, CUTOFF = 0.3, 2.4, 3.5, 4.6

EXPERTS = {
    "lennard_jones": lennard_jones(("Pt", "C"), CUTOFF, epsilon=EPSILON, sigma=SIGMA, onset=ONSET),
    "power_spectrum": small_power_spectrum(cutoff=4.0),
}
PARAMS = {name: randomized(expert) for name, expert in EXPERTS.items()}
COMPILED = {
    name: jax.jit(lambda params, rows, expert=expert: energies_and_partial_forces(expert, params, rows))
    for name, expert in EXPERTS.items()
}


def rattled(pbc=True):
    """Four atoms in a sheared cell smaller than the cutoff: images of one atom share a row."""
    atoms = bulk("Ar", "fcc", a=3.9, cubic=True)
    shear = np.array([[1.0, 0.02, 0.0], [0.0, 0.97, 0.03], [0.05, 0.0, 1.03]])
    atoms.set_cell(atoms.cell @ shear, scale_atoms=True)
    atoms.rattle(0.12, seed=4)
    atoms.pbc = pbc
    return atoms


SPECIES = np.array([0, 1, 0, 0])


def compute(name, atoms, centers=None):
    """Energies of rows, and what follows from their partial forces."""
    rows = rows_from_images(
        atoms.positions,
        SPECIES,
        atoms.cell.array,
        atoms.pbc,
        EXPERTS[name].cutoff,
        centers=centers,
        max_neighbors=80,
    )
    rows = jax.tree.map(jnp.asarray, rows)
    energies, g = COMPILED[name](PARAMS[name], rows)
    centers = jnp.arange(len(atoms)) if centers is None else jnp.asarray(centers)
    return energies, forces(g, rows, centers, len(atoms)), virial(g, rows), rows


@pytest.mark.parametrize("pbc", [True, False, (True, True, False), (False, True, False)], ids=str)
def test_lennard_jones_is_ase(pbc):
    atoms = rattled(pbc)
    energies, F, W, rows = compute("lennard_jones", atoms)
    if np.all(pbc):
        neighbor, center = np.asarray(rows.neighbor), np.arange(4)[:, None]
        assert (np.sum(neighbor == center, axis=1) > 0).all()
    atoms.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF, ro=ONSET, smooth=True)
    close(energies, atoms.get_potential_energies(), 1e-10)
    close(F, atoms.get_forces(), 1e-10)
    if np.all(pbc):
        close(jnp.sum(W, axis=0) / atoms.get_volume(), atoms.get_stress(voigt=False), 1e-10)


@pytest.mark.parametrize("r", [1.9, 2.7, 3.49, 3.51, 4.2, 4.599, 4.601])
def test_lennard_jones_pair_by_its_closed_form(r):
    direction = np.array([2.0, -3.0, 6.0]) / 7.0
    rows = Neighborhood(
        displacement=jnp.asarray(r * direction)[None, None],
        mask=jnp.ones((1, 1), bool),
        center_species=jnp.zeros(1, int),
        neighbor_species=jnp.zeros((1, 1), int),
        neighbor=jnp.ones((1, 1), int),
    )
    pair = 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6)
    slope = -24 * EPSILON * (2 * (SIGMA / r) ** 12 - (SIGMA / r) ** 6) / r
    c2, o2 = CUTOFF**2, ONSET**2
    if r > ONSET:
        switch = (c2 - r**2) ** 2 * (c2 + 2 * r**2 - 3 * o2) / (c2 - o2) ** 3
        slope = slope * switch + pair * 12 * r * (c2 - r**2) * (o2 - r**2) / (c2 - o2) ** 3
        pair = pair * switch
    if r > CUTOFF:
        pair = slope = 0.0
    energy, g = energies_and_partial_forces(EXPERTS["lennard_jones"], PARAMS["lennard_jones"], rows)
    close(energy[0], pair / 2, 1e-13)
    close(g[0, 0], slope / 2 * direction, 1e-13)


def test_lennard_jones_is_zero_at_its_diameter_and_deepest_at_its_minimum():
    def energy(r):
        rows = Neighborhood(
            jnp.stack([r, 0.0 * r, 0.0 * r])[None, None],
            jnp.ones((1, 1), bool),
            *[jnp.zeros((1, 1), int)] * 3,
        )
        return lennard_jones_energies(rows, EPSILON, SIGMA, ONSET, CUTOFF)[0]

    minimum = jnp.array(2 ** (1 / 6) * SIGMA)
    assert abs(energy(jnp.array(SIGMA))) < 1e-15
    np.testing.assert_allclose(energy(minimum), -EPSILON / 2, rtol=1e-14)
    assert abs(jax.grad(energy)(minimum)) < 1e-14
    # Second derivative at the minimum: 72 eps / (2^(1/3) sigma^2), half of it for one of two atoms.
    np.testing.assert_allclose(
        jax.grad(jax.grad(energy))(minimum), 36 * EPSILON / (2 ** (1 / 3) * SIGMA**2), rtol=1e-12
    )


def stencil(f, h=2e-5):
    # Small steps: no pair may cross the onset or the cutoff, where the second derivative of the switch jumps.
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


@pytest.mark.parametrize("name", EXPERTS)
def test_forces_are_central_differences(name):
    _, F, _, _ = compute(name, rattled())
    for atom, axis in ((0, 0), (1, 2), (3, 1)):

        def energy(h, atom=atom, axis=axis):
            atoms = rattled()
            atoms.positions[atom, axis] += h
            return float(jnp.sum(compute(name, atoms)[0]))

        np.testing.assert_allclose(F[atom, axis], -stencil(energy), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EXPERTS)
def test_virial_is_the_derivative_by_strain(name):
    """Each row's, and so the sum's: all nine components of the strain."""
    _, _, W, _ = compute(name, rattled())
    close(W, jnp.swapaxes(W, 1, 2), 1e-14)
    total = jnp.sum(W, axis=0)
    for a, b in np.ndindex(3, 3):

        def energy(h, a=a, b=b):
            strain = np.eye(3)
            strain[a, b] += h
            atoms = rattled()
            atoms.set_cell(atoms.cell.array @ strain.T, scale_atoms=True)
            return float(jnp.sum(compute(name, atoms)[0]))

        np.testing.assert_allclose(total[a, b], stencil(energy), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXPERTS)
def test_momentum_is_conserved_by_any_rows(name):
    """Also by the rows of some atoms only: each slot's pull and push cancel."""
    for centers in (None, [2, 0], [1, 4]):
        if centers == [1, 4]:  # a padded row, which holds nothing
            energies, F, W, rows = compute(name, rattled(), centers=[1, 3])
            g = COMPILED[name](PARAMS[name], rows)[1]
            F = forces(g.at[1].set(0.0), rows, jnp.array([1, 4]), 4)
        else:
            _, F, _, _ = compute(name, rattled(), centers=centers)
        assert np.abs(F).max() > 1e-2
        np.testing.assert_allclose(jnp.sum(F, axis=0), 0.0, atol=1e-13)


@pytest.mark.parametrize("name", EXPERTS)
def test_rows_add_up(name):
    """Forces of two sets of rows are the forces of their union."""
    energies, F, W, _ = compute(name, rattled())
    parts = [compute(name, rattled(), centers=c) for c in ([3, 1], [0, 2])]
    close(sum(p[1] for p in parts), F, 1e-12)
    close(parts[0][0], energies[np.array([3, 1])], 1e-12)
    close(parts[0][2], W[np.array([3, 1])], 1e-12)


def test_padded_slots_and_rows_pull_nothing():
    """Whatever the padded displacements and neighbour indices are."""
    g = jnp.ones((3, 2, 3)).at[0, 1].set(0.0).at[2].set(0.0)
    rows = Neighborhood(
        displacement=jnp.array(
            [[[1.0, 2, 3], [np.inf, 1e300, -7]], [[0, 0, 1], [1, 0, 0]], [[9, 9, 9], [9, 9, 9]]]
        ),
        mask=jnp.array([[True, False], [True, True], [False, False]]),
        center_species=jnp.zeros(3, int),
        neighbor_species=jnp.zeros((3, 2), int),
        neighbor=jnp.array([[1, 0], [0, 0], [1, 1]]),
    )
    F = forces(g, rows, jnp.array([0, 1, 2]), 2)
    np.testing.assert_array_equal(F, [[-1.0] * 3, [1.0] * 3])
    W = virial(g, rows)
    np.testing.assert_array_equal(W[0], [[1.0, 1.5, 2.0], [1.5, 2.0, 2.5], [2.0, 2.5, 3.0]])
    np.testing.assert_array_equal(W[2], 0.0)
