"""What a seam does to a trajectory, as a term of the training's loss.

A perfect crystal at rest stays at rest: every force is zero by symmetry. Cut by
planes between two experts it starts to move, pushed by ghost forces, and what
pushes steadily adds up. The term is the mean square of the steady force that
would have taken an atom of mass m as far, u, in the time t of the trajectory,

    mean_i |2 m u_i / t^2|^2      (eV/Å)^2

so it measures what the weight of forces measures. In the limit of short times it
is the mean square ghost force of the perfect crystal; over a longer time
(a lattice vibration's period is some 200 fs) what averages out does not count.
Agreement of partial forces (`losses`) asks more, of every seam, and from one
evaluation; this asks of one seam what a simulation would ask.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from jax import Array

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, units
from moe_md.checks import check_count, check_positive
from moe_md.data.structures import fcc_supercell
from moe_md.experts.base import Expert, Params, potentials
from moe_md.gradients.rollout import rollout
from moe_md.mixture.energy import mixture_neighbor_list
from moe_md.simulate.integrators import nve


def boundary_drift(
    experts: Sequence[Expert],
    *,
    symbol: str = "Pt",
    lattice_constant: float = 3.98,
    n_steps: int = 10,
    timestep_fs: float = 5.0,
    weight: float = 1.0,
    every: int = 1,
    skin: float = 0.5,
) -> Callable[[tuple[Params, ...], Array], Array]:
    """A function for `cotrain(..., extra_loss=)`.

    Args:
        experts: two; the crystal's lower half is the second one's.
        symbol: an fcc metal that both know.
        lattice_constant: Å.
        n_steps: of the trajectory, at constant energy from rest. In single
            precision less than some 20 fs moves atoms by too little to be told.
        timestep_fs: positive.
        weight: of the term, (Å/eV)^2, as `LossWeights.forces`.
        every: training steps from one trajectory to the next; the term then
            weighs as many times as much.
        skin: Å; where atoms leave half of it the loss is NaN, and training stops.

    Returns:
        `(params, step) -> number`, pure and differentiable; its trajectory's
        memory is that of one step (rematerialised).

    Raises:
        ValueError: an argument is out of range, or not two experts.
    """
    experts = tuple(experts)
    if len(experts) != 2:
        raise ValueError(f"experts must be two, got {len(experts)}.")
    check_positive("weight", weight)
    check_positive("skin", skin)
    check_positive("lattice_constant", lattice_constant)
    check_count("n_steps", n_steps, 1)
    check_count("every", every, 1)
    if symbol not in experts[0].species:
        raise ValueError(f"symbol must be one of the experts' species {experts[0].species}, got {symbol!r}.")
    wide = int(2 * max(e.cutoff for e in experts) / lattice_constant) + 1
    # Each half as thick as what an atom sees to either side of a seam.
    frame = fcc_supercell(symbol, lattice_constant, (wide, wide, max(wide, 2 * -(-wide // 2))))
    edges, n_atoms = np.diag(frame.cell), len(frame.symbols)
    height = frame.positions[:, 2] % edges[2]
    region = regions.fixed((height < 0.5 * edges[2] - 1e-3).astype(int))
    displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(edges, float))
    # Built once; the parameters of the day are handed over.
    params = tuple(e.init(jax.random.key(0)) for e in experts)
    species = np.full(n_atoms, experts[0].species.index(symbol))
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, edges, potentials(experts, params), species, region, dr_threshold=skin
    )
    site = jnp.asarray(frame.positions, float)
    neighbors = neighbor_fn.allocate(site)
    mass = float(atomic_masses[atomic_numbers[symbol]])
    integrator = nve(shift_fn, timestep_fs)
    time = n_steps * timestep_fs * units.fs

    def drift(params) -> Array:
        rest = integrator.start(site, jnp.zeros_like(site), jnp.full(n_atoms, mass, site.dtype), None, None)
        out = rollout(
            energy_fn,
            integrator,
            rest,
            neighbors,
            n_steps,
            params=params,
            update_every=None,
            checkpoint="sqrt" if n_steps > 4 else None,
        )
        moved = jax.vmap(displacement_fn)(out.state.position, site)
        return jnp.mean(jnp.sum((2 * mass / time**2 * moved) ** 2, axis=1))

    def seam_drift_loss(params, step) -> Array:
        if every == 1:
            return weight * drift(params)
        return jax.lax.cond(
            step % every == 0,
            lambda p: weight * every * drift(p),
            lambda p: jnp.zeros((), site.dtype),
            params,
        )

    return seam_drift_loss
