"""Regions of atoms in environments that the cheap expert does not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md.data.references import reference_from_atoms
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.settings import EnvironmentSettings
from moe_md.training.domain_fit import with_domain
from moe_md.training.inputs import environments_of

SPECIES, CUTOFF, A = ("Si",), 4.5, 5.47
EXPENSIVE, CHEAP = (
    mm.experts.density_moments(SPECIES, CUTOFF, num_radial=(4, 2), hidden=(n,)) for n in (6, 4)
)
CRYSTAL = bulk("Si", a=A, cubic=True) * 3


@pytest.fixture(scope="module")
def model() -> mm.Checkpoint:
    settings = EnvironmentSettings(domain_rows=300)
    environments = environments_of([reference_from_atoms(bulk("Si", a=A))], (EXPENSIVE, CHEAP), settings)
    experts = (EXPENSIVE, with_domain(CHEAP, environments, 0))
    return mm.Checkpoint(experts, tuple(e.init(jax.random.key(n)) for n, e in enumerate(experts)), {}, {})


def vacancy(seed=0, sigma=0.05) -> np.ndarray:
    """Positions of a crystal without its first atom."""
    rng = np.random.default_rng(seed)
    return CRYSTAL.positions[1:] + sigma * rng.standard_normal((len(CRYSTAL) - 1, 3))


def mixture(model, region):
    box = jnp.asarray(CRYSTAL.cell.lengths())
    displacement_fn, _ = space.periodic(box)
    n_atoms = len(CRYSTAL) - 1
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn, box, model.potentials, np.zeros(n_atoms, int), region
    )
    return neighbor_fn, energy_fn, displacement_fn


def test_it_finds_a_vacancy_without_a_seed(model):
    position = vacancy()
    neighbor_fn, _, displacement_fn = mixture(model, mm.regions.unfamiliar(model))
    gate = np.asarray(neighbor_fn.gate(jnp.asarray(position), neighbor_fn.allocate(position)))[:, 0]
    distance = np.linalg.norm(
        np.asarray(jax.vmap(displacement_fn, (0, None))(jnp.asarray(position), jnp.zeros(3))), axis=1
    )
    assert (gate[distance < 2.7] > 0.99).all() and (distance < 2.7).sum() == 4
    assert gate[distance > 5.0].max() < 0.01


def test_in_a_crystal_it_selects_nothing(model):
    rng = np.random.default_rng(1)
    region = mm.regions.unfamiliar(model)
    position = CRYSTAL.positions + 0.05 * rng.standard_normal(CRYSTAL.positions.shape)
    calculator = MixtureCalculator(model, region)
    atoms = CRYSTAL.copy()
    atoms.positions = position
    atoms.calc = calculator
    cheap = CRYSTAL.copy()
    cheap.positions = position
    cheap.calc = MixtureCalculator(model, 1)
    np.testing.assert_allclose(atoms.get_forces(), cheap.get_forces(), atol=1e-10)


@pytest.mark.parametrize("of, high", [("crystal", 1.5), ("domain", 0.5)])
def test_forces_are_derivatives_of_the_energy(model, of, high):
    """Where gates are between zero and one, so that their gradient is part of the force."""
    region = mm.regions.unfamiliar(model, 0.1, high, of=of)
    neighbor_fn, energy_fn, _ = mixture(model, mm.regions.grown(region, 2.0, 1.5))
    position = jnp.asarray(vacancy())
    neighbors = neighbor_fn.allocate(position)
    gate = np.asarray(neighbor_fn.gate(position, neighbors))
    assert ((gate > 0.05) & (gate < 0.95)).any()
    energy = jax.jit(lambda R: energy_fn(R, neighbors.update(R)))
    gradient = jax.grad(energy)(position)
    direction = jnp.asarray(np.random.default_rng(3).standard_normal(position.shape))
    slope = (energy(position + 1e-5 * direction) - energy(position - 1e-5 * direction)) / 2e-5
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(slope), rel=1e-6, abs=1e-6)


def test_a_pair_without_a_domain_is_refused(model):
    without = model._replace(experts=(EXPENSIVE, CHEAP))
    with pytest.raises(ValueError, match="a domain of species alone.*domain_rows"):
        mm.regions.unfamiliar(without)
    with pytest.raises(ValueError, match="of must be one of crystal, domain, got 'melt'"):
        mm.regions.unfamiliar(model, of="melt")
    assert mm.regions.unfamiliar(model.cheap.expert).region.cutoff == CUTOFF


def test_a_mixture_warns_once_of_unfamiliar_atoms_and_not_of_the_crystal(model):
    """The rows of a list hold the neighbours of the skin, which do not count."""
    all_cheap = mm.regions.fixed(np.ones(len(CRYSTAL) - 1, int))
    molten = vacancy(sigma=0.7)
    neighbor_fn, _, _ = mixture(model, all_cheap)
    with pytest.warns(UserWarning, match=r"region gives expert 1 \d+ atoms outside its domain.*unfamiliar"):
        neighbors = neighbor_fn.allocate(molten)
    with pytest.warns(UserWarning, match="outside its domain"):
        assert not neighbor_fn.check_domains(molten, neighbors)
    position = vacancy()
    assert neighbor_fn.check_domains(position, neighbor_fn.allocate(position))
