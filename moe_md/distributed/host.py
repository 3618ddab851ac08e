"""The host's part of a mixture on several devices: distribution of atoms, and reallocation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Int, PRNGKeyArray, Real, Shaped

from moe_md import units
from moe_md.checks import check_not_negative
from moe_md.distributed.device import NOT_FINITE, OVERFLOW, TOO_FAST, DistributedConfig
from moe_md.distributed.partition import Atoms, Capacities, Lists, State
from moe_md.experts.base import Params
from moe_md.experts.domain import warn_out_of_domain
from moe_md.failures import SimulationError
from moe_md.simulate.integrators.base import without_wrapping
from moe_md.simulate.integrators.langevin import Langevin
from moe_md.simulate.integrators.nve import NVE

# Capacities of the lists that are built first, to count what is needed.
FIRST_CELL_CAPACITY, FIRST_MAX_NEIGHBORS = 64, 128
MAX_BUILDS = 8


class Programs(NamedTuple):
    """Jitted functions over all devices."""

    rebuild: Callable  # (State) -> State with new lists
    advance: Callable  # (State, integrator, params, n_steps, evaluate_first) -> (State, step, stop)
    sharding: NamedSharding  # of arrays that are divided along their first axis


def scatter(
    config: DistributedConfig,
    programs: Programs,
    position: Real[ArrayLike, "atoms 3"] | Sequence,
    masses: Real[ArrayLike, " atoms"] | Sequence | None = None,
    *,
    velocity: Real[ArrayLike, "atoms 3"] | Sequence | None = None,
    temperature_K: float | None = None,
    key: PRNGKeyArray | None = None,
) -> State:
    """Atoms on their devices, with lists; see `mixture`.

    Args:
        config, programs: of the builder.
        position: Å.
        masses: amu, default 1.
        velocity: ASE's unit, default zero.
        temperature_K: of a Maxwell-Boltzmann draw without total momentum.
        key: random key, for the draw and for Langevin dynamics.

    Raises:
        ValueError: a shape does not match, or a value is out of range.
    """
    n_atoms, partition = config.n_atoms, config.partition
    position = _checked("position", position, (n_atoms, 3))
    dtype = position.dtype
    masses = np.ones(n_atoms) if masses is None else _checked("masses", masses, (n_atoms,))
    mass = masses.astype(dtype)[:, None]
    if not (mass > 0).all():
        raise ValueError(f"masses must be positive (amu), got a smallest of {mass.min()}.")
    momentum = np.zeros_like(position)
    if velocity is not None:
        momentum = mass * _checked("velocity", velocity, (n_atoms, 3)).astype(dtype)
    if temperature_K is not None:
        if key is None or velocity is not None:
            raise ValueError("temperature_K must come with a random key, and without velocity.")
        check_not_negative("temperature_K", temperature_K)
        key, draw = jax.random.split(key)
        momentum = _thermal_momentum(draw, mass, temperature_K)
    gate = np.zeros((n_atoms, len(config.experts)))
    if not config.region.is_dynamic:
        gate = np.asarray(config.region.gate(jnp.asarray(position), config.box_displacement))
    atoms = Atoms(
        np.arange(n_atoms, dtype=np.int32),
        np.asarray(config.species, np.int32),
        gate.astype(dtype),
        mass,
        cast(np.ndarray, partition.wrap(position)),
        momentum,
        np.zeros_like(momentum),
    )
    if key is not None:
        key = jax.device_put(jax.random.split(key, partition.n_subdomains), programs.sharding)
    # Lists with ample capacities count what is needed.
    most = int(np.ceil(config.capacity_multiplier * np.bincount(partition.owner(atoms.position)).max()))
    ample = Capacities(
        atoms=most,
        halo=most,
        cell=FIRST_CELL_CAPACITY,
        near_seeds=most,
        max_neighbors=(FIRST_MAX_NEIGHBORS,) * len(config.cutoffs),
        centers=(most,) * len(config.experts),
    )
    first = build(config, programs, atoms, key, 0, ample)
    zero = jax.tree.map(lambda _: 0, first.capacities)
    return build(config, programs, atoms, key, 0, grown(config, zero, np.asarray(first.lists.needed)[0]))


def build(
    config: DistributedConfig,
    programs: Programs,
    atoms: Atoms,
    key: Shaped[Array, "subdomains ..."] | None,
    n_steps: int,
    capacities: Capacities,
) -> State:
    """All atoms (numpy, in their order) on the devices that own them, with lists.

    Capacities grow until all suffice.

    Raises:
        ValueError: they do not after several attempts.
    """
    partition = config.partition
    owner = partition.owner(atoms.position)
    order, count = np.argsort(owner, kind="stable"), np.bincount(owner, minlength=partition.n_subdomains)
    place = np.arange(config.n_atoms) - np.repeat(np.cumsum(count) - count, count)
    capacities = grown(config, capacities, [count.max(), *jax.tree.leaves(capacities)[1:]])
    for _ in range(MAX_BUILDS):

        def distribute(x, empty, n=capacities.atoms):
            slots = np.full((partition.n_subdomains * n, *x.shape[1:]), empty, x.dtype)
            slots[n * owner[order] + place] = x[order]
            return jax.device_put(slots, programs.sharding)

        energy = np.full(partition.n_subdomains, np.nan, atoms.position.dtype)
        state = programs.rebuild(
            State(
                jax.tree.map(distribute, atoms, partition.empty),
                cast(Lists, None),  # `rebuild` makes them
                jax.device_put(energy, programs.sharding),
                key,
                jax.device_put(np.full(partition.n_subdomains, n_steps, np.int32), programs.sharding),
                capacities,
            )
        )
        needed = np.asarray(state.lists.needed)[0]
        if (needed <= jax.tree.leaves(capacities)).all():
            return state
        capacities = grown(config, capacities, needed)
    raise ValueError(
        f"position must have lists of a finite size, got up to {needed.max()} atoms in a cell or a row: "
        "check for overlapping atoms."
    )


def grown(
    config: DistributedConfig,
    capacities: Capacities,
    needed: Int[np.ndarray, " n"] | Sequence,
    extra: int = 0,
) -> Capacities:
    """Capacities in which those that are too small are replaced by larger ones than needed."""
    leaves, tree = jax.tree.flatten(capacities)
    padded = [int(np.ceil(config.capacity_multiplier * int(n))) + extra for n in needed]
    return jax.tree.unflatten(
        tree, [larger if n > old else old for old, n, larger in zip(leaves, needed, padded)]
    )


def gather(config: DistributedConfig, state: State) -> Atoms[np.ndarray]:
    """All atoms in their order, in numpy, inside the box."""
    atoms = jax.tree.map(np.asarray, state.atoms)
    slots = np.flatnonzero(atoms.index < config.n_atoms)
    slots = slots[np.argsort(atoms.index[slots])]
    atoms = jax.tree.map(lambda x: x[slots], atoms)
    return atoms._replace(position=config.partition.wrap(atoms.position))


def advance(
    config: DistributedConfig,
    programs: Programs,
    state: State,
    integrator: Any,
    n_steps: int,
    params: Sequence[Params] | None = None,
    max_reallocations: int = 8,
    first: bool = False,
) -> tuple[State, int]:
    """Steps of an integrator; returns the state and the number of reallocations.

    Args:
        config, programs: of the builder.
        state: of `scatter` or `advance`.
        integrator: `nve`, or `langevin` with one friction.
        n_steps: steps to take.
        params: default the builder's.
        max_reallocations: larger capacities are allocated at most so often.
        first: evaluate forces before the first step, as is done where they are unknown.

    Raises:
        ValueError: the integrator or the key does not fit.
        SimulationError: atoms move too fast, values are not finite, or capacities do not suffice.
    """
    if not _moves_each_atom_alone(integrator):
        raise ValueError(
            "integrator must be nve, or langevin of one friction, on several devices, "
            f"got {integrator!r:.80}."
        )
    if integrator.needs_key and state.key is None:
        raise ValueError("key must be given to scatter for Langevin dynamics.")
    integrator = replace(integrator, shift_fn=without_wrapping)
    params = config.params if params is None else tuple(params)
    first, last_valid = bool(first or np.isnan(state.potential)), state
    for n_reallocations in range(max_reallocations + 1):
        new, _, stop = programs.advance(state, integrator, params, n_steps, first)
        before, at, stop = int(np.asarray(state.n_steps)[0]), int(np.asarray(new.n_steps)[0]), int(stop)
        if stop & OVERFLOW:
            needed, extra = np.asarray(new.lists.needed)[0], 4 * (n_reallocations + 1)
            capacities = grown(config, state.capacities, needed, extra=extra)
            rebuilt = build(config, programs, gather(config, state), state.key, before, capacities)
            state = replace(rebuilt, energy=state.energy)
        elif stop & TOO_FAST:
            raise SimulationError(
                f"no atom may move by more than half of dr_threshold = {config.dr_threshold} Å in a step, "
                f"but one did at step {at}: try a shorter timestep_fs.",
                last_valid,
            )
        elif stop & NOT_FINITE:
            raise SimulationError(
                f"energy, forces and positions must stay finite, got NaN or infinity at step {at}.",
                last_valid,
            )
        else:
            return new, n_reallocations
    raise SimulationError(
        f"capacities must suffice after {max_reallocations} reallocations, "
        f"but they overflowed again at step {at}: raise max_reallocations or capacity_multiplier.",
        last_valid,
    )


def evaluate(
    config: DistributedConfig, programs: Programs, state: State, params: Sequence[Params] | None = None
) -> State:
    """The state with energy and forces."""
    return advance(config, programs, state, NVE(0.0, without_wrapping), 0, params, first=True)[0]


def check_domains(config: DistributedConfig, state: State) -> bool:
    """Whether all atoms were in their experts' domains when lists were built; warns if not."""
    return warn_out_of_domain(config.experts, np.asarray(state.lists.out_of_domain)[0], stacklevel=4)


def _moves_each_atom_alone(integrator) -> bool:
    """Whether an integrator treats all atoms alike, each by its own force, at every step."""
    if getattr(integrator, "outer_every", 1) != 1:
        return False
    return isinstance(integrator, NVE) or (
        isinstance(integrator, Langevin)
        and np.ndim(integrator.friction_per_fs) == 0
        and integrator.friction_fn is None
    )


def _thermal_momentum(key, mass: np.ndarray, temperature_K: float) -> np.ndarray:
    """A Maxwell-Boltzmann draw without total momentum: `[n_atoms, 3]`."""
    spread = np.sqrt(mass * mass.dtype.type(units.kB * temperature_K))
    momentum = spread * np.asarray(jax.random.normal(key, (len(mass), 3), mass.dtype))
    return momentum - mass * (momentum.sum(axis=0) / mass.sum())


def _checked(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(jnp.asarray(value))
    if values.shape != shape or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        found = f"shape {list(values.shape)} and dtype {values.dtype}"
        raise ValueError(f"{name} must be finite numbers of shape {list(shape)}, got {found}.")
    return values
