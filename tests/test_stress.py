"""Stress of mixtures against finite strain: boxes of any shape, static and moving regions,
two and three experts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import close, randomized, small_allegro, small_lennard_jones, small_power_spectrum
from depths import short
from jax_md import space

import moe_md as mm
from moe_md import derivatives
from moe_md.mixture import mixture_neighbor_list
from moe_md.regions import around, fixed, nested

EXPERTS = (small_allegro(l_max=1, num_layers=1), small_power_spectrum(cutoff=2.7), small_lennard_jones())
PARAMS = [randomized(e) for e in EXPERTS]
SPACING = 2.1

SHAPES = {
    "cubic": np.eye(3),
    "triclinic": np.array([[1.0, 0.2, -0.15], [0.0, 1.05, 0.1], [0.0, 0.0, 1.1]]),
    "full": np.array([[1.05, 0.1, -0.1], [0.05, 1.05, 0.1], [-0.1, 0.05, 1.1]]),
}
GRID = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
OWNERS = np.where(GRID[:, 2] == 0, 0, np.where(GRID[:, 2] == 1, 1, 2))
ATOMS = np.arange(64) % 2


def regions(n_experts):
    ball = around([21], 1.5, 2.0)
    if n_experts == 2:
        return {"fixed": fixed(np.minimum(OWNERS, 1)), "around": ball}
    return {"fixed": fixed(OWNERS, 3), "around": nested(ball, around([21, 42], 2.5, 1.5))}


def crystal(name):
    """Box and fractions of a rattled crystal."""
    box = 4 * SPACING * SHAPES[name]
    fraction = (GRID + 0.5 + 0.06 * np.random.default_rng(3).standard_normal((64, 3))) / 4
    return box, jnp.asarray(fraction)


def built(box, region, n_experts, **kwargs):
    displacement_fn, _ = space.periodic_general(
        box, fractional_coordinates=kwargs.get("fractional_coordinates", False)
    )
    return mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(EXPERTS[-n_experts:], PARAMS[-n_experts:]),
        ATOMS,
        region,
        dr_threshold=0.2,
        **kwargs,
    )


# Compiled whole: eagerly, each operation is a program of its own.
strain_gradient = jax.jit(derivatives.strain_gradient, static_argnums=0)
atomic_virials = jax.jit(derivatives.atomic_virials, static_argnums=0)


def slopes(energy, h=2e-5):
    """Fourth-order differences of an energy of strains, `[3, 3]`; small steps,
    as the Lennard-Jones switch jumps in its second derivative.
    """
    slope = np.zeros((3, 3))
    for a in range(3):
        for b in range(a, 3):
            step = np.zeros((3, 3))
            step[a, b] += 0.5
            step[b, a] += 0.5
            e = [float(energy(k * h * step)) for k in (-2, -1, 1, 2)]
            slope[a, b] = slope[b, a] = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)
    return slope


CASES = [(name, kind, n_experts) for name in SHAPES for kind in ("fixed", "around") for n_experts in (2, 3)]


@pytest.mark.parametrize(
    "case",
    short(CASES, only=[("triclinic", "fixed", 3), ("full", "around", 3)]),
    ids=lambda case: "-".join(map(str, case)),
)
def test_stress_is_the_slope_of_finite_strain(case):
    """Strained boxes in fractional coordinates, lists rebuilt: another way than that of the derivative."""
    name, kind, n_experts = case
    box, fraction = crystal(name)
    region = regions(n_experts)[kind]
    neighbor_fn, energy_fn = built(box, region, n_experts, fractional_coordinates=True)
    compute = jax.jit(lambda nbrs, box: energy_fn(fraction, nbrs, box=box))
    volume = abs(np.linalg.det(box))

    def energy(strain):
        strained = jnp.asarray((np.eye(3) + strain) @ box)
        return compute(neighbor_fn.allocate(fraction, box=strained), strained)

    stress = jax.jit(lambda nbrs: derivatives.stress(energy_fn, fraction, nbrs, volume))(
        neighbor_fn.allocate(fraction)
    )
    expected = slopes(energy) / volume
    assert np.abs(expected).max() > 1e-4
    close(stress / np.abs(expected).max(), expected / np.abs(expected).max(), 1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["fixed", "around"])
def test_real_and_fractional_coordinates_agree(kind):
    box, fraction = crystal("triclinic")
    region = regions(3)[kind]
    results = []
    for fractional in (True, False):
        neighbor_fn, energy_fn = built(box, region, 3, fractional_coordinates=fractional)
        R = fraction if fractional else fraction @ box.T
        nbrs = neighbor_fn.allocate(R)
        energy, gradient = jax.jit(jax.value_and_grad(energy_fn))(R, nbrs)
        results.append((energy, gradient, strain_gradient(energy_fn, R, nbrs)))
    for a, b in zip(*results):
        close(a, b, 1e-11)


@pytest.mark.parametrize("kind", ["fixed", "around"])
def test_atomic_virials_add_up_to_the_strain_gradient(kind):
    box, fraction = crystal("full")
    region = regions(3)[kind]
    neighbor_fn, energies_fn = built(box, region, 3, fractional_coordinates=True, per_particle=True)
    nbrs = neighbor_fn.allocate(fraction)
    each = atomic_virials(energies_fn, fraction, nbrs)
    close(jnp.sum(each, axis=0), strain_gradient(energies_fn, fraction, nbrs), 1e-12)
    assert each.shape == (64, 3, 3) and np.abs(each).max() > 1e-3


def test_atomic_virials_are_those_of_each_owners_rows():
    box, fraction = crystal("triclinic")
    owners = np.minimum(OWNERS, 1)
    alone = []
    for e in (0, 1):
        neighbor_fn, energies_fn = built(
            box, fixed(np.full(64, e)), 2, fractional_coordinates=True, per_particle=True
        )
        alone.append(atomic_virials(energies_fn, fraction, neighbor_fn.allocate(fraction)))
    neighbor_fn, energies_fn = built(box, fixed(owners), 2, fractional_coordinates=True, per_particle=True)
    mixed = atomic_virials(energies_fn, fraction, neighbor_fn.allocate(fraction))
    close(mixed, jnp.where((owners == 0)[:, None, None], *alone), 1e-12)


def test_a_box_without_fractional_coordinates_is_refused():
    box, fraction = crystal("cubic")
    neighbor_fn, energy_fn = built(box, regions(2)["fixed"], 2)
    nbrs = neighbor_fn.allocate(fraction @ box.T)
    for attempt in (
        lambda: energy_fn(fraction @ box.T, nbrs, box=jnp.asarray(box)),
        lambda: nbrs.update(fraction @ box.T, box=jnp.asarray(box)),
        lambda: neighbor_fn.allocate(fraction @ box.T, box=jnp.asarray(box)),
    ):
        with pytest.raises(ValueError, match="box can be given only where fractional_coordinates = True"):
            attempt()
