"""A small crystal under two Lennard-Jones experts, and central differences, for tests of gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import simulate, units

CUTOFF, ONSET = (
    3.45,
    3.35,
)  # Å, between the first shell of fcc Pt and the second: the switch of Lennard-Jones has a kink in its slope


class Crystal(NamedTuple):
    """What trajectories start from."""

    neighbor_fn: object
    energy_fn: object
    shift_fn: object
    params: tuple
    region: object
    position: jax.Array
    momentum: jax.Array
    mass: jax.Array
    box: np.ndarray

    def allocate(self, **kwargs):
        """A list for the start."""
        return self.neighbor_fn.allocate(self.position, **kwargs)

    def start(self, integrator, position=None, momentum=None, key=None):
        """The integrator's state."""
        position = self.position if position is None else position
        return integrator.init(
            position, self.momentum if momentum is None else momentum, self.mass, key, None
        )


def experts():
    """Two that disagree."""
    return [
        mm.experts.lennard_jones(("Pt",), CUTOFF, epsilon=e, sigma=s, onset=ONSET)
        for e, s in ((0.6, 2.50), (0.5, 2.52))
    ]


@functools.lru_cache
def crystal(
    region_name: str = "moving", temperature_K: float = 100.0, dr_threshold: float = 0.4, repeat: int = 2
) -> Crystal:
    """Rattled Pt, 32 atoms or more; positions in Å."""
    atoms = bulk("Pt", cubic=True, a=3.97).repeat(repeat)
    rng = np.random.default_rng(0)
    position = jnp.asarray(atoms.positions + rng.normal(scale=0.03, size=atoms.positions.shape))
    box = np.diag(atoms.cell).copy()
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box))
    region = {
        "moving": lambda: mm.regions.around([0, 9], 1.4, 1.7),
        "static": lambda: mm.regions.sphere(
            position, [2.0, 2.0, 2.0], 2.0, blend=2.5, displacement_fn=displacement_fn
        ),
    }[region_name]()
    pair = experts()
    params = tuple(e.init(None) for e in pair)
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        mm.experts.potentials(pair, params),
        np.zeros(len(atoms), int),
        region,
        dr_threshold=dr_threshold,
    )
    mass = jnp.asarray(atoms.get_masses())
    momentum = rng.normal(size=position.shape) * np.sqrt(np.asarray(mass)[:, None] * units.kB * temperature_K)
    momentum = jnp.asarray(momentum - momentum.mean(axis=0))
    return Crystal(*fns, shift_fn, params, region, position, momentum, mass, box)


def slope(f, at: float, step: float) -> float:
    """df/dx by a central difference of fourth order."""
    near, far = f(at + step) - f(at - step), f(at + 2 * step) - f(at - 2 * step)
    return float((8 * near - far) / (12 * step))


START = ("masses", "velocity", "temperature_K", "key", "box")


def run_from(neighbor_fn, energy_fn, integrator, position=None, *, state=None, region=None, **options):
    """`simulate.start` and `simulate.run` in one call; `run_reassigned` where `reassign_every` is given."""
    begin = {name: options.pop(name) for name in START if name in options}
    if state is None:
        state = simulate.start(integrator, position, **begin)
    elif begin:
        state = simulate.adopt(integrator, state, **begin)
    if "reassign_every" in options:
        return simulate.run_reassigned(neighbor_fn, energy_fn, integrator, state, region, **options)
    return simulate.run(neighbor_fn, energy_fn, integrator, state, region=region, **options)
