"""A step of molecular dynamics, timed with a mixture and with either expert alone."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate, units
from moe_md.checkpoint import Checkpoint
from moe_md.experts.base import Expert, potentials
from moe_md.mixture import mixture_neighbor_list

SKIN = 0.4  # Å, of the neighbour list


class System(NamedTuple):
    """A slab, and what dynamics needs to know of it."""

    atoms: Atoms
    position: np.ndarray  # [n_atoms, 3] Å, in the dtype of the run
    box: np.ndarray  # [3] Å
    species: np.ndarray  # [n_atoms] int
    region: regions.Fixed

    @property
    def assignment(self) -> np.ndarray:
        """`[n_atoms]` int, the expert of each atom."""
        return np.asarray(self.region.assignment)


class StepTime(NamedTuple):
    """Seconds of one step of molecular dynamics."""

    median: float
    lower: float  # first quartile
    upper: float  # third quartile
    compile: float  # seconds until the first step had run


class Timings(NamedTuple):
    """Three ways to run the same atoms, timed in turn."""

    expensive: StepTime  # all atoms on the expensive expert
    mixed: StepTime
    cheap: StepTime  # all atoms on the cheap one: a time only, C and O are not its business
    f: float

    @property
    def r(self) -> float:
        """Cost of the expensive expert over that of the cheap one."""
        return self.expensive.median / self.cheap.median

    @property
    def speedup(self) -> float:
        """Mixture against all-expensive."""
        return self.expensive.median / self.mixed.median

    @property
    def s_max(self) -> float:
        """The most to gain where all atoms cost the same."""
        return 1.0 / (self.f + (1.0 - self.f) / self.r)


class Stepper:
    """One step of velocity Verlet as a compiled program, with or without a mixture.

    Args:
        system: atoms, box and species.
        experts, params: one expert, or a mixture.
        region: who owns what.
        timestep_fs: positive.
        chunk_size: rows computed at a time.
    """

    def __init__(
        self, system: System, experts: Sequence[Expert], params, region, timestep_fs: float, chunk_size: int
    ):
        displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(system.box))
        self._neighbor_fn, energy_fn = mixture_neighbor_list(
            displacement_fn,
            system.box,
            potentials(experts, params),
            system.species,
            region,
            dr_threshold=SKIN,
            chunk_size=chunk_size,
        )
        _, apply_fn = jax_md.simulate.nve(energy_fn, shift_fn, timestep_fs * units.fs)

        def step(state, neighbors):
            neighbors = neighbors.update(state.position)
            return apply_fn(state, neighbor=neighbors), neighbors

        self._step = jax.jit(step)
        self._mass = jnp.asarray(system.atoms.get_masses()[:, None], system.position.dtype)
        self._carry: Any = None

    def start(self, position, velocity) -> float:
        """Compile and take the first step; returns its seconds."""
        position = jnp.asarray(position, self._mass.dtype)
        momentum = self._mass * jnp.asarray(velocity, self._mass.dtype)
        self._carry = (
            cast(Any, jax_md.simulate.NVEState)(position, momentum, jnp.zeros_like(position), self._mass),
            self._neighbor_fn.allocate(position),
        )
        return self.advance()

    def advance(self) -> float:
        """One step; returns its seconds."""
        started = time.perf_counter()
        self._carry = jax.block_until_ready(self._step(*self._carry))
        seconds = time.perf_counter() - started
        if bool(self._carry[1].did_buffer_overflow):
            raise simulate.SimulationError(
                "neighbour lists must fit while timing, but they overflowed.", self._carry[0]
            )
        return seconds

    def forces(self, position) -> np.ndarray:
        """Forces at some positions, `[n_atoms, 3]` eV/Å; by the program that is timed."""
        position = jnp.asarray(position, self._mass.dtype)
        rest = jnp.zeros_like(position)
        state = cast(Any, jax_md.simulate.NVEState)(
            position, rest, rest, self._mass
        )  # at rest and without force: stays
        stepped, neighbors = self._step(state, self._carry[1])
        if bool(neighbors.did_buffer_overflow):
            stepped, _ = self._step(state, self._neighbor_fn.allocate(position))
        return np.asarray(stepped.force)


def steppers(model: Checkpoint, system: System, timestep_fs: float, chunk_size: int) -> dict[str, Stepper]:
    """All atoms on the expensive expert, the mixture, all on the cheap one.

    Either expert alone runs without the machinery of a mixture, with its own
    neighbour list.
    """
    alone = regions.fixed(np.zeros(len(system.atoms), int), n_experts=1)

    def make(which: slice, region) -> Stepper:
        return Stepper(system, model.experts[which], model.params[which], region, timestep_fs, chunk_size)

    return {
        "expensive": make(slice(0, 1), alone),
        "mixed": make(slice(0, 2), system.region),
        "cheap": make(slice(1, 2), alone),
    }


def interleave(cases: dict[str, Stepper], system: System, position, velocity, rounds: int) -> Timings:
    """Time the three in turn, so that whatever else the machine does hits all alike.

    Args:
        cases: from `steppers`.
        system: for the share of the expensive expert.
        position, velocity: where all start.
        rounds: timed steps of each.

    Returns:
        Medians and quartiles; the first two steps of each do not count.
    """
    compile_seconds = {name: case.start(position, velocity) for name, case in cases.items()}
    names, seconds = list(cases), {name: [] for name in cases}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            spent = cases[name].advance()
            if turn >= 0:
                seconds[name].append(spent)
    times = {}
    for name in names:
        lower, median, upper = np.percentile(seconds[name], [25, 50, 75])
        times[name] = StepTime(float(median), float(lower), float(upper), compile_seconds[name])
    return Timings(times["expensive"], times["mixed"], times["cheap"], float(np.mean(system.assignment == 0)))


def timing_lines(timings: Timings) -> list[str]:
    """The timings as a table in Markdown."""
    row = "| {} | {:.1f} | {:.1f} to {:.1f} | {:.2f} |".format
    lines = ["| | ms per step | quartiles | speed-up |", "| --- | ---: | ---: | ---: |"]
    for label, t in (
        ("all atoms on the expensive expert", timings.expensive),
        ("mixture", timings.mixed),
        ("all atoms on the cheap expert (timing only)", timings.cheap),
    ):
        lines.append(
            row(label, 1e3 * t.median, 1e3 * t.lower, 1e3 * t.upper, timings.expensive.median / t.median)
        )
    return lines
