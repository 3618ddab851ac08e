"""How positions move: constant energy, temperature, pressure; and downhill.

An integrator is a pytree, so that its numbers never recompile. Its state is a
pytree with `position`, `momentum`, `mass` and `force`. Each integrator needs
the force once per step, at positions that do not depend on that force:
`simulate` takes the step without force to find them, evaluates there, and takes
the step again with what it found.

With multiple time steps (r-RESPA: Tuckerman, Berne, Martyna, J. Chem. Phys. 97,
1990, 1992) what an expensive expert adds to a cheap inner_potential is a slow force, felt
as an impulse at every n-th step. The half kicks of its outer step and those of
the inner ones fall together there, so it is velocity Verlet (or BAOAB) under
the force fast + n slow at every n-th step and fast at the others: symmetric in
time, and symplectic.

jax-md supplies velocity Verlet, Langevin (BAOAB), Nosé-Hoover chains and FIRE.
The barostat is ours: in fractional coordinates jax-md's (0.2.29) moves atoms by
their *fractions* times the growth of the box, so a trajectory depends on where
the origin is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import lazy_jax_md as jax_md
from moe_md import units
from moe_md.checks import check_count, check_not_negative, check_positive, check_value
from moe_md.neighbors.neighbor_list import box_matrix


class Evaluation(NamedTuple):
    """What an energy says about positions and box."""

    # [n_atoms, 3] eV/Å; with multiple time steps slow forces count n times at an outer step, and not between
    force: Array
    strain_gradient: Array | None  # [3, 3] eV, dE/d strain; None where no one asked


class Integrator(Protocol):
    """What `simulate.run` asks of an integrator."""

    @property
    def conserves_momentum(self) -> bool: ...

    @property
    def needs_key(self) -> bool: ...

    @property
    def changes_box(self) -> bool:
        """Whether the box changes: then `Evaluation` holds the strain gradient."""
        ...

    @property
    def outer_every(self) -> int:
        """Steps between slow forces."""
        ...

    def start(self, position: Array, momentum: Array, mass: Array, key, box) -> Any:
        """A state, forces yet unknown."""
        ...

    def place(self, state, box) -> tuple[Array, Any]:
        """Positions and box where the energy is wanted, as the energy takes them."""
        ...

    def receive(self, state, found: Evaluation) -> Any:
        """The state with forces known."""
        ...

    def step(self, state, found: Evaluation, box) -> Any:
        """One step later, where `found` belongs to the new positions."""
        ...

    def reservoir(self, state) -> Array:
        """eV, what the conserved energy has beyond potential and kinetic; NaN where nothing is conserved."""
        ...


class _OneForce:
    """What integrators have in common that move atoms in a box that stands still."""

    changes_box = False
    outer_every = 1

    def functions(self, force_fn: Callable) -> tuple[Callable, Callable]:
        """jax-md's `(init_fn, apply_fn)`."""
        raise NotImplementedError

    def place(self, state, box):
        """The positions, in the box given."""
        return state.position, box

    def receive(self, state, found: Evaluation):
        """The state with forces known."""
        return state.set(force=found.force)

    def step(self, state, found: Evaluation, box):
        """One step later."""
        _, apply_fn = self.functions(lambda R, **_: found.force)
        return apply_fn(state, **({} if box is None else {"box": box}))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NVE(_OneForce):
    """Velocity Verlet."""

    timestep_fs: float
    shift_fn: Callable = field(metadata={"static": True})
    outer_every: int = field(default=1, metadata={"static": True})

    conserves_momentum = True
    needs_key = False

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        return jax_md.simulate.nve(force_fn, self.shift_fn, self.timestep_fs * units.fs)

    def start(self, position, momentum, mass, key, box):
        """jax-md's state, forces yet unknown."""
        del key, box
        state = cast(Any, jax_md.simulate.NVEState)  # a dataclass that type checkers do not know
        return state(position, momentum, jnp.zeros_like(position), mass[:, None])

    def reservoir(self, state):
        """Nothing."""
        return jnp.zeros((), state.position.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Langevin(_OneForce):
    """BAOAB Langevin dynamics (Davidchack et al., J. Chem. Phys. 142, 144114)."""

    timestep_fs: float
    temperature_K: float
    friction_per_fs: float | Array  # a number, or [n_atoms]
    shift_fn: Callable = field(metadata={"static": True})
    expert_friction: Array | None = None  # [n_experts] per fs, from which `follow` makes that of the atoms
    outer_every: int = field(default=1, metadata={"static": True})

    conserves_momentum = False
    needs_key = True

    def follow(self, weight: Array) -> "Langevin":
        """The friction of each atom, from its weights `[n_atoms, n_experts]` on the experts."""
        rates = self.expert_friction
        if rates is None or len(rates) != weight.shape[1]:
            raise ValueError(
                f"friction_per_fs must have a rate for each of {weight.shape[1]} experts, "
                f"got {0 if rates is None else len(rates)}."
            )
        return replace(self, friction_per_fs=jnp.maximum(weight @ rates.astype(weight.dtype), 0.0))

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        friction = self.friction_per_fs
        if jnp.ndim(friction):
            friction = cast(Array, friction)[:, None]
        return jax_md.simulate.nvt_langevin(
            force_fn,
            self.shift_fn,
            self.timestep_fs * units.fs,
            self.temperature_K * units.kB,
            friction / units.fs,  # ty: ignore[invalid-argument-type]  # jax-md takes arrays, too
        )

    def start(self, position, momentum, mass, key, box):
        """jax-md's state, forces yet unknown."""
        del box
        if jnp.shape(self.friction_per_fs) not in ((), (len(position),)):
            raise ValueError(
                f"friction_per_fs must be a number or one for each of {len(position)} atoms, "
                f"got {jnp.shape(self.friction_per_fs)[0]}."
            )
        state = cast(Any, jax_md.simulate.NVTLangevinState)
        return state(position, momentum, jnp.zeros_like(position), mass[:, None], key)

    def reservoir(self, state):
        """Unknown."""
        return jnp.full((), jnp.nan, state.position.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoseHoover(_OneForce):
    """A Nosé-Hoover chain (Martyna et al., J. Chem. Phys. 97, 2635), of five as jax-md's default."""

    timestep_fs: float
    temperature_K: float
    tau_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        dt, tau = self.timestep_fs * units.fs, self.tau_fs * units.fs
        return jax_md.simulate.nvt_nose_hoover(
            force_fn, self.shift_fn, dt, self.temperature_K * units.kB, tau=tau
        )

    def start(self, position, momentum, mass, key, box):
        """jax-md's state, forces yet unknown; the chain counts no degree of freedom of the total momentum."""
        del key, box
        chain = _chain(self, 5, self.tau_fs).initialize(
            n_free(position), _kinetic(momentum, mass[:, None]), self.temperature_K * units.kB
        )
        state = cast(Any, jax_md.simulate.NVTNoseHooverState)
        return state(position, momentum, jnp.zeros_like(position), mass[:, None], chain)

    def reservoir(self, state):
        """Energy of the chain."""
        return _chain_energy(state.chain, self.temperature_K * units.kB)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BarostatState:
    """Atoms in fractional coordinates, and a box that breathes."""

    position: Array  # [n_atoms, 3], fractions of the box
    momentum: Array  # [n_atoms, 3] amu Å / (Å sqrt(amu / eV))
    force: Array  # [n_atoms, 3] eV/Å
    mass: Array  # [n_atoms, 1] amu
    strain_trace: Array  # eV, trace of dE/d strain
    reference_box: Array  # [3, 3] Å, columns
    box_position: Array  # ln(edge / reference edge)
    box_momentum: Array
    thermostat: Any  # of the atoms
    barostat: Any  # thermostat of the box

    @property
    def velocity(self) -> Array:
        """`[n_atoms, 3]`."""
        return self.momentum / self.mass

    @property
    def box(self) -> Array:
        """`[3, 3]` Å, columns."""
        return self.reference_box * jnp.exp(self.box_position)

    def set(self, **kwargs) -> "BarostatState":
        """A copy with other fields, as jax-md's states."""
        return replace(self, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NPT:
    """Isotropic Martyna-Tobias-Klein barostat with Nosé-Hoover chains.

    Source:
        Tuckerman, Alejandre, López-Rendón, Jochim, Martyna,
        J. Phys. A 39, 5629 (2006), section 4.
    """

    timestep_fs: float
    temperature_K: float
    pressure_GPa: float
    tau_fs: float
    barostat_tau_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False
    changes_box = True
    outer_every = 1

    def start(self, position, momentum, mass, key, box):
        """A state, forces yet unknown."""
        del key
        kT, mass, zero = self.temperature_K * units.kB, mass[:, None], jnp.zeros((), position.dtype)
        thermostat, barostat = self._chains()
        return BarostatState(
            position=position,
            momentum=momentum,
            force=jnp.zeros_like(position),
            mass=mass,
            strain_trace=zero,
            reference_box=jnp.asarray(box_matrix(box), position.dtype),
            box_position=zero,
            box_momentum=zero,
            thermostat=thermostat.initialize(n_free(position), _kinetic(momentum, mass), kT),
            barostat=barostat.initialize(1, zero, kT),
        )

    def place(self, state: BarostatState, box):
        """Fractions, and the box of the state."""
        del box
        return state.position, state.box

    def receive(self, state: BarostatState, found: Evaluation):
        """The state with forces known."""
        gradient = cast(Array, found.strain_gradient)  # as `changes_box`
        return state.set(force=found.force, strain_trace=jnp.trace(gradient))

    def step(self, state: BarostatState, found: Evaluation, box):
        """One step later: chains, half kicks around a drift in a box that moves along, chains."""
        del box
        dt, kT, mass = self.timestep_fs * units.fs, self.temperature_K * units.kB, state.mass
        thermostat, barostat = self._chains()
        heat, cold = (
            c.update_mass(s, kT) for c, s in ((thermostat, state.thermostat), (barostat, state.barostat))
        )
        box_momentum, cold = barostat.half_step(state.box_momentum, cold, kT)
        momentum, heat = thermostat.half_step(state.momentum, heat, kT)
        state = state.set(momentum=momentum, box_momentum=box_momentum)

        state = self._kick_atoms(self._kick_box(state, dt / 2), dt / 2)
        rate = state.box_momentum / self._box_mass(state)
        state = state.set(box_position=state.box_position + rate * dt)
        # Fractions do not change as the box grows; what atoms move besides is Å of the new box.
        move = dt * state.velocity * jnp.exp(rate * dt / 2) * _sinhc(rate * dt / 2)
        state = state.set(position=self.shift_fn(state.position, move, box=state.box))
        state = self.receive(state, found)
        state = self._kick_box(self._kick_atoms(state, dt / 2), dt / 2)

        heat = heat.set(kinetic_energy=_kinetic(state.momentum, mass))
        cold = cold.set(kinetic_energy=self._box_kinetic(state))
        momentum, heat = thermostat.half_step(state.momentum, heat, kT)
        box_momentum, cold = barostat.half_step(state.box_momentum, cold, kT)
        return state.set(momentum=momentum, box_momentum=box_momentum, thermostat=heat, barostat=cold)

    def reservoir(self, state: BarostatState):
        """Energy of both chains and of the box, and the work against the pressure."""
        kT, volume = self.temperature_K * units.kB, jnp.abs(jnp.linalg.det(state.box))
        chains = _chain_energy(state.thermostat, kT) + _chain_energy(state.barostat, kT)
        return chains + self.pressure_GPa * units.GPa * volume + self._box_kinetic(state)

    def _chains(self):
        return _chain(self, 3, self.tau_fs), _chain(self, 3, self.barostat_tau_fs)

    def _box_mass(self, state: BarostatState):
        return (
            (n_free(state.position) + 3)
            * self.temperature_K
            * units.kB
            * (self.barostat_tau_fs * units.fs) ** 2
        )

    def _box_kinetic(self, state: BarostatState):
        return 0.5 * state.box_momentum**2 / self._box_mass(state)

    def _kick_box(self, state: BarostatState, dt):
        volume = jnp.abs(jnp.linalg.det(state.box))
        kinetic = (1 + 3 / n_free(state.position)) * 2 * _kinetic(state.momentum, state.mass)
        push = kinetic - state.strain_trace - 3 * self.pressure_GPa * units.GPa * volume
        return state.set(box_momentum=state.box_momentum + dt * push)

    def _kick_atoms(self, state: BarostatState, dt):
        x = (1 + 3 / n_free(state.position)) * state.box_momentum / self._box_mass(state) * dt
        kicked = state.momentum * jnp.exp(-x) + dt * state.force * _sinhc(x / 2) * jnp.exp(-x / 2)
        return state.set(momentum=kicked)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fire(_OneForce):
    """FIRE descent with unit masses (Bitzek et al., PRL 97, 170201), as ASE's.

    No step is longer than `max_step`.
    """

    shift_fn: Callable = field(metadata={"static": True})
    dt_start: float = field(default=0.05, metadata={"static": True})  # Å sqrt(amu / eV)
    # Steps stay stable up to 2 / omega, 0.13 for C-O.
    dt_max: float = field(default=0.1, metadata={"static": True})
    max_step: float = field(default=0.1, metadata={"static": True})  # Å, of the atom that moves most

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        return jax_md.minimize.fire_descent(force_fn, self._shift, self.dt_start, self.dt_max)

    def _shift(self, R: Array, dR: Array, **kwargs) -> Array:
        longest = jnp.sqrt(jnp.max(jnp.sum(dR**2, axis=-1)))
        return self.shift_fn(R, dR * (self.max_step / jnp.maximum(longest, self.max_step)), **kwargs)

    def start(self, position):
        """jax-md's state, forces yet unknown."""
        init_fn, _ = self.functions(lambda R, **_: jnp.zeros_like(R))
        return init_fn(position, mass=jnp.ones((position.shape[0], 1), position.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CellFire:
    """FIRE on atoms and cell at once.

    The state's positions are `[n_atoms + 3, 3]`: the atoms in Å of the first
    box, X, then n_atoms times the deformation gradient F of the cell. Atoms are
    at F X; forces on X are F^T f, those on n_atoms F are
    -(dE/d strain + p V) F^-T / n_atoms, as in ASE's `UnitCellFilter`.
    """

    first_box: Array  # [3, 3] Å, columns
    pressure_GPa: float
    mask: Array  # [3, 3], one where the cell may strain, zero where not

    changes_box = True
    outer_every = 1

    def start(self, fraction):
        """FIRE's state, forces yet unknown."""
        position = jnp.concatenate(
            [fraction @ self.first_box.T, len(fraction) * jnp.eye(3, dtype=fraction.dtype)]
        )
        return self._descent().start(position)

    def place(self, state, box):
        """Fractions, and the box."""
        del box
        n_atoms = state.position.shape[0] - 3
        deformation = state.position[n_atoms:] / n_atoms
        return state.position[:n_atoms] @ jnp.linalg.inv(self.first_box).T, deformation @ self.first_box

    def receive(self, state, found: Evaluation):
        """The state with forces known."""
        return state.set(force=self._generalised(state, found))

    def step(self, state, found: Evaluation, box):
        """One step later."""
        del box
        descend = self._descent()
        # The forces on X depend on the new cell: it is where the step without force ends.
        there = descend.step(state, Evaluation(jnp.zeros_like(state.force), None), None)
        return descend.step(state, Evaluation(self._generalised(there, found), None), None)

    def _descent(self) -> Fire:
        return Fire(_in_open_space)

    def _generalised(self, state, found: Evaluation):
        _, box = self.place(state, None)
        n_atoms = state.position.shape[0] - 3
        deformation = state.position[n_atoms:] / n_atoms
        volume = jnp.abs(jnp.linalg.det(box))
        identity = jnp.eye(3, dtype=box.dtype)
        gradient = cast(Array, found.strain_gradient)  # as `changes_box`
        push = self.mask * (gradient + self.pressure_GPa * units.GPa * volume * identity)
        on_cell = -push @ jnp.linalg.inv(deformation).T / n_atoms
        return jnp.concatenate([found.force @ deformation, on_cell])


def nve(shift_fn: Callable, timestep_fs: float, *, outer_every: int = 1) -> NVE:
    """Constant energy: velocity Verlet.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        outer_every: steps between evaluations of the expensive expert, where
            the mixture has an inner potential: multiple time steps. Energies and forces
            that are told are the whole ones, at those steps. An inner potential that knows
            a bond's stiffness lets 3 to 4 fs pass; an outer step near half or a
            third of the period of what it does not know is unstable.

    Raises:
        ValueError: the time step or `outer_every` is not positive.
    """
    check_positive("timestep_fs", timestep_fs)
    return NVE(float(timestep_fs), shift_fn, check_count("outer_every", outer_every, 1))


def langevin(
    shift_fn: Callable,
    timestep_fs: float,
    temperature_K: float,
    friction_per_fs,
    *,
    per_expert: bool = False,
    outer_every: int = 1,
) -> Langevin:
    """Constant temperature: Langevin dynamics. Total momentum is not conserved.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        temperature_K: not negative.
        friction_per_fs: rate at which velocities are forgotten, positive; 0.01
            equilibrates in a fraction of a picosecond. Or `[n_atoms]` rates,
            zero for atoms that move freely.
        per_expert: the rates are those of the experts: (0.0, 0.01) leaves the
            atoms of the first, where things happen, to themselves. An atom has
            the mean of its experts' rates, looked up at each chunk of
            `simulate.run`, so that the thermostat follows a region that moves.
        outer_every: as in `nve`.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("timestep_fs", timestep_fs)
    check_not_negative("temperature_K", temperature_K)
    check_count("outer_every", outer_every, 1)
    build = partial(
        Langevin, float(timestep_fs), float(temperature_K), shift_fn=shift_fn, outer_every=outer_every
    )
    if np.ndim(friction_per_fs) == 0 and not per_expert:
        check_positive("friction_per_fs", friction_per_fs)
        return build(float(friction_per_fs))
    rates = np.asarray(friction_per_fs)
    if (
        rates.ndim != 1
        or rates.dtype.kind not in "iuf"
        or not (rates >= 0).all()
        or not 0 < rates.max(initial=0) < np.inf
    ):
        raise ValueError(
            "friction_per_fs must be rates that are finite, not negative and not all zero, "
            f"got {friction_per_fs!r:.80}."
        )
    rates = jnp.asarray(rates, float)
    # Of the atoms nothing is known yet.
    return build(0.0, expert_friction=rates) if per_expert else build(rates)


def nose_hoover(
    shift_fn: Callable, timestep_fs: float, temperature_K: float, tau_fs: float = 100.0
) -> NoseHoover:
    """Constant temperature: a Nosé-Hoover chain.

    Deterministic; an extended energy and the momentum are conserved.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        temperature_K: positive.
        tau_fs: period of the chain, positive; 100 time steps are usual.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("timestep_fs", timestep_fs)
    check_positive("temperature_K", temperature_K)
    check_positive("tau_fs", tau_fs)
    return NoseHoover(float(timestep_fs), float(temperature_K), float(tau_fs), shift_fn)


def npt(
    shift_fn: Callable,
    timestep_fs: float,
    temperature_K: float,
    pressure_GPa: float = 0.0,
    *,
    tau_fs: float = 100.0,
    barostat_tau_fs: float = 1000.0,
) -> NPT:
    """Constant temperature and pressure; the box keeps its shape.

    The mixture is built with `fractional_coordinates=True`, and `run` is given
    the first `box`.

    Args:
        shift_fn: from `jax_md.space.periodic_general`, fractional coordinates.
        timestep_fs: positive.
        temperature_K: positive.
        pressure_GPa: of the surroundings.
        tau_fs: period of the chain of the atoms, positive.
        barostat_tau_fs: period of the box and of its chain, positive.

    Raises:
        ValueError: an argument is out of range.
    """
    check_positive("timestep_fs", timestep_fs)
    check_positive("temperature_K", temperature_K)
    check_positive("tau_fs", tau_fs)
    check_positive("barostat_tau_fs", barostat_tau_fs)
    check_value("pressure_GPa", pressure_GPa, float)
    numbers = (timestep_fs, temperature_K, pressure_GPa, tau_fs, barostat_tau_fs)
    return NPT(*map(float, numbers), shift_fn)


def n_free(position: Array | np.ndarray) -> int:
    """Degrees of freedom where the total momentum is conserved."""
    n_atoms = position.shape[0]
    return 3 * n_atoms - 3 if n_atoms > 1 else 3


def _chain(integrator, length: int, tau_fs):
    return jax_md.simulate.nose_hoover_chain(
        integrator.timestep_fs * units.fs, length, 2, 3, tau_fs * units.fs
    )


def _chain_energy(chain, kT) -> Array:
    kinetic = jnp.sum(chain.momentum**2 / (2 * chain.mass))
    return kinetic + kT * (chain.degrees_of_freedom * chain.position[0] + jnp.sum(chain.position[1:]))


def _kinetic(momentum: Array, mass: Array) -> Array:
    return 0.5 * jnp.sum(momentum**2 / mass)


def _sinhc(x: Array) -> Array:
    """sinh(x) / x near zero."""
    return 1 + x**2 / 6 * (1 + x**2 / 20 * (1 + x**2 / 42))


def _in_open_space(R: Array, dR: Array, **_) -> Array:
    return R + dR
