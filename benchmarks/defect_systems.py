"""Crystals, regions and timed steps of the benchmarks of defects and of adsorbed atoms."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from bench_mixture import row_of
from jax_md import simulate, space

import moe_md as mm
from moe_md.analysis.bulk import relax_crystal
from moe_md.data.planes import conventional_cell
from moe_md.data.references import Reference, reference_from_atoms, reference_to_dict
from moe_md.interfaces import ase_gates, cached_rows
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.neighbors.rows import image_pairs

FIRST_GAP = 1.25  # distances of one shell differ by less than this factor; bcc's two nearest are one
# A neighbour counts fully up to the first of these and not from the second on, in units of the distance of
# the furthest atom of the first shell. Longer ones miss the stretched bonds of an atom between two sites.
COUNTED = (1.0, 1.25)
COUNTED_HOT = (1.1, 1.3)  # the same for hot crystals, whose thermal motion must not select atoms
RIM = 1.1  # in the same unit, distance of a vacancy within which atoms are at its rim
SAME, CHANGED = 0.3, 0.7  # change of the number of neighbours, up to and from which atoms are (not) selected
SKIN = 0.4  # Å
TIMESTEP_FS = 1.0


class Crystal(NamedTuple):
    """A crystal of one element, relaxed under the expensive expert."""

    cell: Atoms  # conventional
    energies: tuple[float, ...]  # eV per atom, under each expert
    shell: float  # Å, distance of the furthest atom of the first shell
    n_shell: int  # atoms of the first shell


class System(NamedTuple):
    """The functions of a mixture for some atoms in a rectangular box."""

    neighbor_fn: Any
    energy_fn: Callable
    shift_fn: Callable


def name_of(checkpoint: str) -> str:
    """What records call a checkpoint: its name, or that of its folder."""
    path = Path(checkpoint)
    return path.parent.name if path.stem == "checkpoint" else path.stem


def smoke_pair(symbols: tuple[str, ...], structure: str, cheap_symbols: tuple[str, ...]) -> mm.Checkpoint:
    """Two Lennard-Jones experts that differ a little, with a crystal of the first symbol."""
    nearest = 2.6  # Å
    a = nearest * {"fcc": np.sqrt(2), "bcc": 2 / np.sqrt(3)}[structure]
    experts = tuple(
        mm.experts.lennard_jones(
            symbols, 1.9 * nearest, epsilon=epsilon, sigma=nearest / 1.1, allowed_species=allowed
        )
        for epsilon, allowed in ((0.5, symbols), (0.49, cheap_symbols))
    )
    reference = reference_to_dict(reference_from_atoms(bulk(symbols[0], structure, a=a)))
    params = tuple(expert.init(None) for expert in experts)
    return mm.Checkpoint(experts, params, {}, {"references": [reference]})


def reference_of(model: mm.Checkpoint, symbol: str) -> Reference:
    """The checkpoint's crystal of one element.

    Raises:
        ValueError: it has none.
    """
    known = [r for r in model.references if r.is_crystal]
    for reference in known:
        if set(reference.atoms.symbols) == {symbol}:
            return reference
    raise ValueError(
        f"symbol must be an element of which the checkpoint has a crystal, got {symbol!r}; "
        f"its crystals are {', '.join(r.formula for r in known) or 'none'}."
    )


def crystal_of(model: mm.Checkpoint, symbol: str) -> Crystal:
    """The crystal of an element, relaxed under the expensive expert.

    Raises:
        ValueError: the checkpoint has no crystal of it, or its conventional cell is not rectangular.
    """
    relaxed = relax_crystal(*model.expensive, reference_of(model, symbol).atoms).atoms
    cell = conventional_cell(relaxed)
    if not np.allclose(cell.cell.angles(), 90.0, atol=1e-6):
        raise ValueError(f"crystal must have a rectangular conventional cell, got {cell.cell.cellpar()}.")
    cell.set_cell(cell.cell.lengths(), scale_atoms=True)
    energies = [
        energy_per_atom(model, e, cell) if symbol in expert.allowed_species else np.nan
        for e, expert in enumerate(model.experts)
    ]
    return Crystal(cell, tuple(energies), *first_shell(cell))


def energy_per_atom(model: mm.Checkpoint, expert: int, atoms: Atoms) -> float:
    """eV per atom, of all atoms on one expert."""
    atoms = atoms.copy()
    atoms.calc = MixtureCalculator(model, expert)
    return atoms.get_potential_energy() / len(atoms)


def first_shell(crystal: Atoms) -> tuple[float, int]:
    """Distance (Å) of the furthest neighbour of the first shell of an atom, and their number.

    The shell ends at the first distance that the next one exceeds by the factor `FIRST_GAP`.

    >>> first_shell(bulk("W", "bcc", a=3.2))
    (3.2, 14)
    """
    pairs = image_pairs(crystal.positions, crystal.cell.array, crystal.pbc, 8.0)
    distance = np.sort(np.linalg.norm(pairs[2][pairs[0] == 0], axis=1))
    last = int(np.argmax(distance[1:] > FIRST_GAP * distance[:-1]))
    return round(float(distance[last]), 6), last + 1


def coordination_bounds(crystal: Crystal, counted: Sequence[float]) -> dict[str, float]:
    """Å, the distances up to which a neighbour counts fully, and from which it does not."""
    return dict(zip(("r_full", "r_none"), (factor * crystal.shell for factor in counted), strict=True))


def few_neighbors(model: mm.Checkpoint, crystal: Crystal, counted: Sequence[float]) -> mm.regions.Region:
    """The atoms that have fewer neighbours than in the perfect crystal."""
    n = crystal.n_shell
    return mm.regions.coordination(n - CHANGED, n - SAME, **coordination_bounds(crystal, counted))


def changed_neighbors(model: mm.Checkpoint, crystal: Crystal, counted: Sequence[float]) -> mm.regions.Region:
    """The atoms that have fewer or more neighbours than in the perfect crystal.

    Around a vacancy there are fewer. At the saddle of its jump there may be more.
    """
    n = crystal.n_shell
    many = mm.regions.coordination(n + SAME, n + CHANGED, **coordination_bounds(crystal, counted))
    return mm.regions.union(few_neighbors(model, crystal, counted), mm.regions.complement(many))


def unfamiliar(model: mm.Checkpoint, crystal: Crystal, counted: Sequence[float]) -> mm.regions.Region:
    """The atoms in environments unlike those on which the experts were made to agree."""
    return mm.regions.unfamiliar(model)


SELECTIONS = {"changed": changed_neighbors, "few": few_neighbors, "unfamiliar": unfamiliar}


def repeated(crystal: Atoms, n_atoms: int, cells: int | None = None) -> Atoms:
    """A crystal of some conventional cells along each axis, or of about so many atoms."""
    cells = cells or max(1, round((n_atoms / len(crystal)) ** (1 / 3)))
    return crystal * (cells, cells, cells)


def build(model: mm.Checkpoint, atoms: Atoms, region, dtype: str = "float64") -> System:
    """The mixture for some atoms; of an expert's number, that expert alone."""
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box, dtype))
    potentials = model.potentials[:2]
    if isinstance(region, int):
        potentials = potentials[region : region + 1]
        region = mm.regions.fixed(np.zeros(len(atoms), int), n_experts=1)
    species = np.array([model.experts[0].species.index(s) for s in atoms.symbols])
    return System(*mm.mixture_neighbor_list(displacement_fn, box, potentials, species, region), shift_fn)


def gates(model: mm.Checkpoint, images: list[Atoms], region) -> np.ndarray:
    """`[n_images, n_atoms]`, the share of each atom's energy that the expensive expert supplies."""
    if isinstance(region, int):
        return np.full((len(images), len(images[0])), 1.0 - region)
    cutoff, known = max(e.cutoff for e in model.experts), model.experts[0].species
    found = []
    for image in images:
        geometry = cached_rows.reference_geometry(image, np.array([known.index(s) for s in image.symbols]))
        pairs = image_pairs(geometry.position, geometry.cell, geometry.pbc, cutoff + SKIN)
        idx, within = ase_gates.gate_neighbors(geometry, pairs, cutoff, SKIN)
        inputs = ase_gates.GateInputs(
            geometry.position, geometry.cell, geometry.pbc, geometry.species.astype(np.int32), idx
        )
        with jax.enable_x64(True):
            found.append(np.asarray(ase_gates.gate(region, inputs, cutoff=within))[:, 0])
    return np.array(found)


def timed_steps(model: mm.Checkpoint, atoms: Atoms, regions: dict, repeats: int) -> list[dict]:
    """Time a step of constant-energy dynamics in float32: rows as those of `bench_mixture`.

    Args:
        model: the experts.
        atoms: in a rectangular box.
        regions: by name, besides one expert alone, which the names `all expensive` and `all cheap` mean.
        repeats: timed steps of each, in turn.
    """
    position = jnp.asarray(atoms.get_positions(wrap=True), jnp.float32)
    position += 0.02 * jax.random.normal(jax.random.key(0), position.shape)
    mass = jnp.asarray(atoms.get_masses()[:, None], jnp.float32)
    momentum = jnp.sqrt(mass * mm.units.kB * 300.0) * jax.random.normal(jax.random.key(1), position.shape)
    cases, shares, forces = {}, {"all expensive": (1.0, 0.0), "all cheap": (0.0, 1.0)}, {}
    for name, region in {"all expensive": 0, "all cheap": 1, **regions}.items():
        system = build(model, atoms, region, "float32")
        with (
            warnings.catch_warnings()
        ):  # of atoms outside the domain of one expert alone, which is timed only
            warnings.simplefilter("ignore" if name not in regions else "default")
            neighbors = system.neighbor_fn.allocate(position)
        step = harness.dynamics_step(mm.simulate.nve(system.shift_fn, TIMESTEP_FS), system.energy_fn)
        state = simulate.NVEState(position, momentum - momentum.mean(0), jnp.zeros_like(position), mass)
        if name in regions:
            gate = np.asarray(system.neighbor_fn.gate(position, neighbors))
            shares[name] = tuple(np.mean(gate > 0, axis=0).tolist())
        cases[name] = harness.Case(lambda carry, step=step: step(*carry), (state, neighbors))
        cases[name].advance()  # without a force in its first half step, so all have the same positions
        forces[name] = np.asarray(cases[name].state[0].force)
    timings = harness.interleave(cases, repeats=repeats)
    expensive, cheap = (timings[name].median for name in ("all expensive", "all cheap"))
    return [
        row_of(name, case, timings[name], forces[name], shares[name], expensive, cheap)
        for name, case in cases.items()
    ]


def describe_steps(rows: list[dict]) -> str:
    """The rows of `timed_steps` as lines of text."""
    return "\n".join(
        f"{row['name']:20s} f {row['f']:.3f}  {1e3 * row['median_s']:8.1f} ms  speed-up "
        f"{row['speedup']:.2f} of {row['s_max']:.2f}"
        for row in rows
    )
