"""The embedded atom against ASE's: the same functions in its EAM, and what its EMT teaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.eam import EAM
from ase.calculators.emt import EMT
from contract import ATOMS, POSITION, SPECIES, close, cluster_rows, randomized, small_embedded_atom
from jax.flatten_util import ravel_pytree

from moe_md.derivatives import forces
from moe_md.experts import embedded_atom, energies_and_partial_forces
from moe_md.neighbors.rows import rows_from_images

CUTOFF, BESSELS, AVERAGE = 3.0, 5, 7.0


def radial(r):
    """`[..., bessels]` of a NumPy array of distances."""
    x, p = np.asarray(r)[..., None] / CUTOFF, 6
    u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    return np.where(x < 1, u * np.sin(np.arange(1, BESSELS + 1) * np.pi * x) / (np.pi * x), 0.0)


def sum_of(coefficients):
    return lambda r: radial(r) @ coefficients


def derivative(fn, h=1e-4):
    return lambda x: (8 * (fn(x + h) - fn(x - h)) - (fn(x + 2 * h) - fn(x - 2 * h))) / (12 * h)


def embedding(net, s):
    """F of species s: a function of its one density."""

    def network(rho):
        x = np.asarray(rho)[..., None]
        for layer in range(2):
            gain = 1.0 if layer == 0 else np.sqrt(2.0)
            x = gain * x @ net[f"weight_{layer}"][s] / np.sqrt(x.shape[-1]) + 0.3 * net[f"bias_{layer}"][s]
            x = x / (1 + np.exp(-x))
        return x @ net["readout"][s] / np.sqrt(x.shape[-1])

    return lambda rho: network(rho) - network(0.0)


def ase_eam(params) -> EAM:
    """The same functions as ASE holds them; it takes phi of a pair to be one function."""
    net = params["network"]
    norm = np.sqrt(AVERAGE * 2 * BESSELS)
    pair = net["pair"].reshape(2, 2, BESSELS) / norm
    mix = net["density_mixing"][..., 0].reshape(2, 2, BESSELS) / norm
    phi, density = np.empty((2, 2), object), np.empty((2, 2), object)
    for i in range(2):
        for j in range(2):
            phi[i, j] = sum_of(0.5 * (pair[i, j] + pair[j, i]))
            density[j, i] = sum_of(mix[i, j])  # of a neighbour j where i is embedded
    embedded = np.array([embedding(net, s) for s in range(2)])
    slopes = np.vectorize(derivative, otypes=[object])
    return EAM(
        elements=list(SPECIES),
        embedded_energy=embedded,
        electron_density=density,
        phi=phi,
        d_embedded_energy=slopes(embedded),
        d_electron_density=slopes(density),
        d_phi=slopes(phi),
        cutoff=CUTOFF,
        form="fs",
    )


def test_one_density_is_the_embedded_atom_of_ase():
    expert = embedded_atom(
        SPECIES, CUTOFF, num_bessels=BESSELS, num_densities=1, hidden=(4, 3), avg_num_neighbors=AVERAGE
    )
    params = {**randomized(expert, seed=3), "scale": np.ones(2), "shift": np.zeros(2)}
    atoms = Atoms(np.array(SPECIES)[ATOMS], POSITION, calculator=ase_eam(params))
    rows = cluster_rows(POSITION, ATOMS, extra_slots=1)
    energies, g = energies_and_partial_forces(expert, params, rows)
    assert abs(jnp.sum(energies)) > 1e-3
    close(jnp.sum(energies), atoms.get_potential_energy(), 1e-12)
    close(forces(g, rows, jnp.arange(len(ATOMS)), len(ATOMS)), atoms.get_forces(), 1e-9)


def emt_frames(seed, n):
    """Hot platinum, strained by up to 4 %, with the energy of every atom."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        atoms = bulk("Pt", cubic=True, a=3.92 * rng.uniform(0.97, 1.04)).repeat(2)
        atoms.positions += rng.normal(0, rng.uniform(0.05, 0.12), (len(atoms), 3))
        atoms.calc = EMT()
        yield atoms


def rows_of(atoms):
    return rows_from_images(
        atoms.positions, np.zeros(len(atoms), int), atoms.cell.array, atoms.pbc, 6.0, max_neighbors=80
    )


def least_squares(residual, x, n_steps):
    """Levenberg and Marquardt's damped Gauss-Newton steps."""
    value = jax.jit(residual)
    both = jax.jit(lambda x: (residual(x), jax.jacfwd(residual)(x)))
    damping = 1.0
    for _ in range(n_steps):
        r, J = both(x)
        trial = x - jnp.linalg.solve(J.T @ J + damping * jnp.eye(len(x)), J.T @ r)
        better = jnp.sum(value(trial) ** 2) < jnp.sum(r**2)
        x, damping = (trial, damping / 4) if better else (x, damping * 8)
    return x


@pytest.mark.thorough
def test_it_learns_the_effective_medium_theory_of_platinum():
    """ASE's EMT is of this form, atom by atom. What remains is its cutoff, a step 0.2 Å wide,
    which few waves cannot be.
    """
    expert = embedded_atom(("Pt",), 6.0, num_bessels=12, num_densities=1, hidden=(8,))
    train, test = list(emt_frames(0, 16)), list(emt_frames(1, 3))
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *map(rows_of, train))
    labels = jnp.concatenate([jnp.asarray(atoms.get_potential_energies()) for atoms in train])
    start, unravel = ravel_pytree(
        jax.tree.map(lambda x: jnp.asarray(x, float), expert.init(jax.random.key(0)))
    )
    x = least_squares(lambda x: expert.atom_energies(unravel(x), rows) - labels, start, 50)
    evaluate = jax.jit(lambda rows: energies_and_partial_forces(expert, unravel(x), rows))
    energy, force = [], []
    for atoms in test:
        held_out = rows_of(atoms)
        energies, g = evaluate(held_out)
        found = forces(g, held_out, np.arange(len(atoms)), len(atoms))
        energy.append((energies, atoms.get_potential_energies()))
        force.append((found, atoms.get_forces()))
    for (found, expected), share in ((np.stack(energy, 1), 0.08), (np.stack(force, 1), 0.05)):
        spread = np.std(expected)
        assert spread > 0.05
        assert np.sqrt(np.mean((found - expected) ** 2)) < share * spread


def test_angles_do_not_matter_and_pairs_are_not_all():
    expert = small_embedded_atom()
    params = randomized(expert)
    energy_fn = jax.jit(expert.atom_energies)

    def centre(*neighbors):
        position = np.array([[0.0, 0, 0], *neighbors])
        return float(energy_fn(params, cluster_rows(position, np.zeros(len(position), int)))[0])

    right, straight = (centre([1.8, 0, 0], other) for other in ([0, 1.8, 0], [-1.8, 0, 0]))
    assert abs(right - straight) < 1e-14
    one, none = centre([1.8, 0, 0]), params["shift"][0]
    assert abs((right - none) - 2 * (one - none)) > 1e-3


@pytest.mark.parametrize("domain, blocks", [(("Pt",), 1), (("C", "Pt"), 2)])
def test_each_species_of_the_domain_has_its_functions(domain, blocks):
    net = small_embedded_atom(domain).init(jax.random.key(0))["network"]
    assert net["pair"].shape == (blocks, 4 * blocks)
    assert net["density_mixing"].shape == (blocks, 4 * blocks, 2)
    assert net["weight_0"].shape == (blocks, 2, 6)


def test_order_of_the_domain_is_the_order_of_its_weights():
    """The same weights under a permuted domain: the same energies."""
    one, other = small_embedded_atom(("Pt", "C")), small_embedded_atom(("C", "Pt"))
    params = randomized(one)
    net = jax.tree.map(lambda x: np.asarray(x)[::-1], params["network"])
    for name in ("pair", "density_mixing"):
        x = net[name]
        net[name] = x.reshape(2, 2, 4, -1)[:, ::-1].reshape(x.shape)
    rows = cluster_rows(POSITION, ATOMS)
    close(other.atom_energies({**params, "network": net}, rows), one.atom_energies(params, rows), 1e-12)
