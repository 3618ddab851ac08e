"""A step of molecular dynamics, timed with a mixture and with either expert alone; an atom on each expert."""

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from moe_md import lazy_jax_md as jax_md
from moe_md import regions, simulate
from moe_md.checkpoint import Checkpoint
from moe_md.compiler import fast_jit
from moe_md.experts.base import Potential
from moe_md.failures import SimulationError, Status
from moe_md.mixture import mixture_neighbor_list
from moe_md.simulate.advance import Chunk, advance_chunk

SKIN = 0.4  # Å, of the neighbour list


class System(NamedTuple):
    """A slab, and what dynamics needs to know of it."""

    atoms: Atoms
    position: Float[np.ndarray, "atoms 3"]  # Å, in the dtype of the run
    box: Float[np.ndarray, " 3"]  # Å
    species: Int[np.ndarray, " atoms"]
    region: regions.Fixed

    @property
    def assignment(self) -> Int[np.ndarray, " atoms"]:
        """The expert of each atom."""
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
    """One step of a constant-energy run, with or without a mixture: the program that `simulate.run` uses.

    Args:
        system: atoms, box and species.
        potentials: one, or those of a mixture.
        region: which expert computes which atom.
        timestep_fs: positive.
        chunk_size: rows computed at a time.
    """

    def __init__(
        self, system: System, potentials: Sequence[Potential], region, timestep_fs: float, chunk_size: int
    ):
        displacement_fn, shift_fn = jax_md.space.periodic(jnp.asarray(system.box))
        self._neighbor_fn, self._energy_fn = mixture_neighbor_list(
            displacement_fn,
            system.box,
            potentials,
            system.species,
            region,
            dr_threshold=SKIN,
            chunk_size=chunk_size,
        )
        self._integrator = simulate.nve(shift_fn, timestep_fs)
        self._mass = jnp.asarray(system.atoms.get_masses(), system.position.dtype)
        self._state: Any = None
        self._neighbors: Any = None

    def start(self, position: Real[ArrayLike, "atoms 3"], velocity: Real[ArrayLike, "atoms 3"]) -> float:
        """Compile and take the first step; returns its seconds."""
        position = jnp.asarray(position, self._mass.dtype)
        momentum = self._mass[:, None] * jnp.asarray(velocity, self._mass.dtype)
        self._state = self._integrator.init(position, momentum, self._mass, None, None)
        self._neighbors = self._neighbor_fn.allocate(position)
        return self.advance()

    def advance(self) -> float:
        """One step; returns its seconds."""
        started = time.perf_counter()
        chunk = jax.block_until_ready(self._chunk(self._state, self._neighbors, False, 1))
        seconds = time.perf_counter() - started
        if int(chunk.status) == Status.NEIGHBOR_OVERFLOW:
            raise SimulationError("neighbour lists must fit while timing, but they overflowed.", self._state)
        self._state, self._neighbors = chunk.state, chunk.neighbors
        return seconds

    def forces(self, position: Real[ArrayLike, "atoms 3"]) -> Float[np.ndarray, "atoms 3"]:
        """Forces at some positions, eV/Å; by the program that is timed."""
        position = jnp.asarray(position, self._mass.dtype)
        state = self._integrator.init(position, jnp.zeros_like(position), self._mass, None, None)
        chunk = self._chunk(state, self._neighbors, True, 0)
        if int(chunk.status) == Status.NEIGHBOR_OVERFLOW:
            chunk = self._chunk(state, self._neighbor_fn.allocate(position), True, 0)
        return np.asarray(chunk.force)

    def _chunk(self, state, neighbors, first: bool, n_steps: int) -> Chunk:
        return advance_chunk(
            self._energy_fn, self._integrator, state, neighbors, None, None, None, first, n_steps
        )


def steppers(model: Checkpoint, system: System, timestep_fs: float, chunk_size: int) -> dict[str, Stepper]:
    """All atoms on the expensive expert, the mixture, all on the cheap one.

    Either expert alone runs without the machinery of a mixture, with its own
    neighbour list.
    """
    alone = regions.fixed(np.zeros(len(system.atoms), int), n_experts=1)

    def make(which: slice, region) -> Stepper:
        return Stepper(system, model.potentials[which], region, timestep_fs, chunk_size)

    return {
        "expensive": make(slice(0, 1), alone),
        "mixed": make(slice(0, 2), system.region),
        "cheap": make(slice(1, 2), alone),
    }


def interleave(
    cases: dict[str, Stepper],
    system: System,
    position: Real[ArrayLike, "atoms 3"],
    velocity: Real[ArrayLike, "atoms 3"],
    rounds: int,
) -> Timings:
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


def seconds_per_atom(
    potentials: Sequence[Potential],
    atoms: Atoms,
    *,
    dtype=np.float64,
    chunk_size: int = 64,
    rounds: int = 7,
) -> tuple[float, ...]:
    """Time that each potential takes for energy and forces of an atom, all atoms on it: seconds.

    It is the program of a step, without lists and integrator. Potentials are timed in turn.

    Args:
        potentials: one or more.
        atoms: periodic along three directions, in a box wider than twice each cutoff.
        dtype: of the positions; float64 needs `jax.enable_x64`.
        chunk_size: rows computed at a time.
        rounds: timed evaluations of each potential, positive; medians are returned.

    Raises:
        ValueError: the box is too narrow, or a species is unknown.
    """
    is_rectangular = np.allclose(atoms.cell.array, np.diag(atoms.cell.lengths()))
    box = (atoms.cell.lengths() if is_rectangular else atoms.cell.array.T).astype(dtype)
    space = jax_md.space
    displacement_fn, _ = (
        space.periodic(box) if is_rectangular else space.periodic_general(box, fractional_coordinates=False)
    )
    position = jnp.asarray(atoms.get_positions(wrap=True), dtype)
    alone = regions.fixed(np.zeros(len(atoms), int), n_experts=1)
    programs = []
    for potential in potentials:
        known = potential.expert.species
        species = np.array([known.index(symbol) for symbol in atoms.symbols], np.int32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rows outside the domain: only the time is used
            neighbor_fn, energy_fn = mixture_neighbor_list(
                displacement_fn, box, [potential], species, alone, dr_threshold=SKIN, chunk_size=chunk_size
            )
            neighbors = neighbor_fn.allocate(position)
        evaluate = fast_jit(jax.value_and_grad(energy_fn))
        jax.block_until_ready(evaluate(position, neighbors))  # compiles
        programs.append((evaluate, neighbors))
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(rounds):
        for spent, (evaluate, neighbors) in zip(seconds, programs):
            started = time.perf_counter()
            jax.block_until_ready(evaluate(position, neighbors))
            spent.append(time.perf_counter() - started)
    return tuple(float(np.median(spent)) / len(atoms) for spent in seconds)
