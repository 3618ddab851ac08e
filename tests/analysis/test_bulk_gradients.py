"""Lattice constant and bulk modulus as differentiable functions of parameters, fitted to experiment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.units import GPa
from jax_md import space

import moe_md as mm
from moe_md.analysis.bulk_gradients import isotropic_crystal, mixed_isotropic_crystal

TARGET = np.array([3.923, 280.0])  # Å, GPa: platinum by experiment
A = 3.95  # Å, of the cell that is given
GIVEN = bulk("Pt", "fcc", a=A)
CUTOFF, ONSET = 5.3, 5.0  # between the third and the fourth neighbour shell, also in strained crystals


def two_experts():
    return [
        mm.experts.lennard_jones(("Pt",), CUTOFF, epsilon=e, sigma=s, onset=ONSET)
        for e, s in ((0.6, 2.55), (0.5, 2.56))
    ]


@pytest.mark.thorough
def test_the_cheap_expert_is_fitted_to_targets_of_the_mixture():
    """Newton's method on lattice constant and bulk modulus; the full mixture then has these values."""
    experts = two_experts()
    atoms = bulk("Pt", a=TARGET[0], cubic=True).repeat(3)
    owner = (atoms.get_distances(0, range(len(atoms)), mic=True) > 3.0).astype(int)
    share = float(np.mean(owner == 0))
    assert np.sum(owner == 0) == 13
    params = [e.init(None) for e in experts]
    crystal = mixed_isotropic_crystal(experts, [share, 1 - share], GIVEN)

    @jax.jit
    def properties(cheap):
        result = crystal((params[0], cheap))
        return jnp.stack([A * result.scale, result.bulk_modulus_GPa])

    cheap, unravel = jax.flatten_util.ravel_pytree(params[1])
    assert np.abs(properties(params[1]) / TARGET - 1).max() > 0.05
    for _ in range(8):
        cheap -= jnp.linalg.solve(
            jax.jacrev(lambda x: properties(unravel(x)))(cheap), properties(unravel(cheap)) - TARGET
        )
    np.testing.assert_allclose(properties(unravel(cheap)), TARGET, rtol=1e-10)

    box = np.diag(atoms.cell.lengths())
    fns = mm.mixture_neighbor_list(
        space.periodic_general(box)[0],
        box,
        mm.experts.potentials(experts, (params[0], unravel(cheap))),
        np.zeros(len(atoms), int),
        mm.regions.fixed(owner),
        fractional_coordinates=True,
    )
    fraction = jnp.asarray(atoms.get_scaled_positions())
    neighbors = fns[0].allocate(fraction)

    def energy(a):
        scaled = jnp.asarray(box * a / TARGET[0])
        return fns[1](fraction, neighbors.update(fraction, box=scaled), box=scaled) / 27

    h = 2e-3
    e = {n: float(energy(TARGET[0] + n * h)) for n in range(-2, 3)}
    slope = (8 * (e[1] - e[-1]) - (e[2] - e[-2])) / (12 * h)
    curvature = (16 * (e[1] + e[-1]) - (e[2] + e[-2]) - 30 * e[0]) / (12 * h**2)
    assert abs(slope) < 1e-6  # eV/Å
    # V d^2E/dV^2 with V = a^3 and dE/da = 0.
    np.testing.assert_allclose(curvature / (9 * TARGET[0]) / GPa, TARGET[1], rtol=1e-5)


def test_all_atoms_on_one_expert_give_its_crystal():
    experts = two_experts()
    params = [e.init(None) for e in experts]
    for n, shares in enumerate(([1.0, 0.0], [0.0, 1.0])):
        np.testing.assert_allclose(
            mixed_isotropic_crystal(experts, shares, GIVEN)(params),
            isotropic_crystal(experts[n], GIVEN)(params[n]),
            rtol=1e-12,
        )


def test_two_atoms_of_a_cell_agree_with_the_host():
    """A hexagonal crystal of ideal shape: energy, volume and bulk modulus by finite differences of ASE."""
    expert, atoms = two_experts()[0], bulk("Pt", "hcp", a=2.8, c=2.8 * (8 / 3) ** 0.5)
    crystal = isotropic_crystal(expert, atoms)(expert.init(None))
    calculator = LennardJones(sigma=2.55, epsilon=0.6, rc=CUTOFF, ro=ONSET, smooth=True)

    def energy(scale):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * scale, scale_atoms=True)
        scaled.calc = calculator
        return scaled.get_potential_energy() / 2, scaled.get_volume() / 2

    h = 1e-3
    (low, _), (middle, volume), (high, _) = (energy(float(crystal.scale) * np.exp(k * h)) for k in (-1, 0, 1))
    np.testing.assert_allclose([crystal.energy, crystal.volume], [middle, volume], rtol=1e-9)
    assert abs(high - low) / (2 * h) < 1e-3
    modulus = (high - 2 * middle + low) / h**2 / (9 * volume) / GPa
    np.testing.assert_allclose(crystal.bulk_modulus_GPa, modulus, rtol=1e-4)


def test_bad_arguments():
    experts = two_experts()
    for message, change in (
        ("shares must be", dict(shares=[0.5, 0.6])),
        ("shares must be", dict(shares=[1.0])),
        ("shares must be", dict(shares=[1.5, -0.5])),
        ("window must be in", dict(window=1.0)),
        ("atoms must be of the expert's species", dict(atoms=bulk("Cu"))),
        ("atoms must be a crystal", dict(atoms=Atoms("Pt"))),
    ):
        with pytest.raises(ValueError, match=message):
            mixed_isotropic_crystal(
                **{"experts": experts, "shares": [0.5, 0.5], "atoms": GIVEN, "window": 0.15, **change}
            )
