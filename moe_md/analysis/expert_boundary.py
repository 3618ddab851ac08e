"""Ghost forces, stress jumps and mismatch at the boundary between two experts.

Cut a crystal in two parts and assign one expert to each. What the boundary adds to the force on
an atom k is its ghost force: the force of the mixture minus the force that the atom has where its
own expert e(k) owns all atoms,

    F_k = -sum_i d(E_i^{e(i)} - E_i^{e(k)}) / dR_k, i over the atoms of both parts.

In a crystal whose atoms are at rest by symmetry the second term is zero, and the ghost force is
the force. Ghost forces vanish for every boundary if the partial forces g_ik of the experts agree.

Two experts can also differ in the stress of the same strained crystal. The stress
jump is this difference; it acts across the expert boundary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ase import Atoms
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from moe_md import derivatives, units
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.planes import (
    conventional_cell,
    cut_at_widest_gap,
    oriented_cell,
    plane_name,
    plane_spacing,
    repeats_to_width,
    widest_planes,
)
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.experts.base import Expert, Params
from moe_md.experts.chunks import energies_and_partial_forces
from moe_md.experts.domain import in_domain
from moe_md.neighbors.rows import Neighborhood
from moe_md.renamed import missing_attribute

CHUNK = 64  # rows computed at a time
SPHERE_OFFSET = (0.11, 0.23, 0.37)  # of its centre from a lattice point, in conventional vectors
STRAINS = (  # name and strain tensor [3, 3] in x, y and z, for the crystal in the middle of the list
    ("stretched along x by 1 %", np.diag([0.01, 0.0, 0.0])),
    ("compressed along x by 1 %", np.diag([-0.01, 0.0, 0.0])),
    ("stretched along x + y + z by 1 %", np.full((3, 3), 0.01 / 3)),
    ("compressed along x + y + z by 1 %", np.full((3, 3), -0.01 / 3)),
    (
        "sheared, y planes along x, by 1 %",
        np.array([[0.0, 0.005, 0.0], [0.005, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ),
    ("sheared at constant volume, x against y, by 1 %", np.diag([0.005, -0.005, 0.0])),
)


class GhostForce(NamedTuple):
    """Forces that expert boundaries add to a structure."""

    max: float  # eV/Å, the longest one
    rms: float  # eV/Å, root mean square length over `near` atoms
    forces: Float[np.ndarray, "atoms 3"]  # eV/Å
    near: Bool[np.ndarray, " atoms"]  # has neighbours on another expert


class Mismatch(NamedTuple):
    """Difference of two experts on each row."""

    energy: Float[np.ndarray, " n"]  # eV, E_i^H - E_i^L
    partial_force: Float[np.ndarray, " n"]  # eV/Å, root of sum_k |g_ik^H - g_ik^L|^2
    in_domain: Bool[np.ndarray, " n"]  # all species of the row are in the domain of both experts


def ghost_force(
    experts: Sequence[Expert],
    params: Sequence[Params],
    frame: Frame,
    assignment: Int[ArrayLike, " atoms"] | Bool[ArrayLike, " atoms"] | Sequence,
) -> GhostForce:
    """Ghost forces in a structure whose atoms are assigned to several experts.

    Args:
        experts: any number.
        params: one parameter tree per expert.
        frame: a crystal of any size; neighbours include images. Where all its atoms are at rest by
            symmetry, as in fcc, the ghost forces are the forces of the mixture. In others,
            as strained diamond, and with displaced atoms, they are the change from the force
            under the atom's own expert alone.
        assignment: the expert of each atom.

    Returns:
        The ghost forces and their size. That of an atom whose neighbours all have its
        own expert is zero; such atoms are left out of `rms`.

    Raises:
        ValueError: lengths do not match, an assigned expert does not exist, or a
            species is unknown.

    >>> from ase.build import bulk
    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Pt",), 5.0, sigma=2.5446)
    >>> params = expert.init(None)
    >>> crystal, owner = bisected_crystals(bulk("Pt", a=3.92), 5.0)["111"]
    >>> ghost_force([expert, expert], [params, params], crystal, owner).max < 1e-6
    True
    """
    owner = _checked_assignment(assignment, len(frame.symbols), len(experts))
    rows = _rows(experts, frame)
    partials = [_on_rows(e, p, rows)[1] for e, p in zip(experts, params, strict=True)]
    return _ghost_force(partials, rows, owner)


def bisected_crystals(
    atoms: Atoms, cutoff: float, n_planes: int = 2
) -> dict[str, tuple[Frame, Int[np.ndarray, " _"]]]:
    """A crystal cut in two parts, along its most widely spaced lattice planes and by a sphere.

    Planes come in pairs, as the crystals are periodic. They are so far apart that no
    atom has neighbours across both, and lie where the layer without atoms is widest. The cells are the
    smallest of the plane's lattice: neighbours are images.

    Args:
        atoms: primitive cell of a crystal, periodic in all directions, as of a `Reference`.
        cutoff: Å, the largest of the experts'.
        n_planes: number of planes.

    Returns:
        By name of the plane (Miller indices of the conventional cell, `"111"`), and for `"sphere"` (of
        radius `cutoff`, its centre not a lattice point), the crystal and the expert of each atom.

    Raises:
        ValueError: `n_planes` is not positive, or too large.

    >>> from ase.build import bulk
    >>> list(bisected_crystals(bulk("Pt", a=3.98), 5.0))
    ['111', '100', 'sphere']
    """
    crystals = {}
    for hkl in widest_planes(atoms.cell.array, n_planes):
        cell, _ = cut_at_widest_gap(oriented_cell(atoms, hkl))
        half = int(np.ceil(2 * cutoff / plane_spacing(atoms.cell.array, hkl)))
        owner = np.repeat(
            np.array([0, 1], np.int32), half * len(atoms)
        )  # cells follow along the third vector
        crystals[plane_name(atoms, hkl)] = frame_from_atoms(cell * (1, 1, 2 * half)), owner
    cell = conventional_cell(atoms)
    repeats = repeats_to_width(cell.cell.array, 4 * cutoff)
    crystal = frame_from_atoms(cell * repeats)
    center = (np.array(repeats) / 2 + SPHERE_OFFSET) @ cell.cell.array
    distance = np.linalg.norm(crystal.positions - center, axis=1)
    crystals["sphere"] = crystal, (distance > cutoff).astype(np.int32)
    return crystals


def ghost_force_report(
    checkpoint: Checkpoint, atoms: Atoms, strains: Sequence[float] = (0.0,), *, n_planes: int = 2
) -> dict:
    """Ghost forces between the first two experts, for planes and a sphere.

    Args:
        checkpoint: at least two experts.
        atoms: primitive cell of a crystal, periodic in all directions.
        strains: relative changes of all lengths of `atoms`; usually within 0.02 of the relaxed crystal.
        n_planes: number of planes, the most widely spaced ones.

    Returns:
        A dictionary that JSON can store, in meV/Å: for each plane (`"111"` and `"100"` in fcc) and
        `"sphere"` the lists `max` and `rms` over strains; over all of
        them `worst`, the largest force, and `rms`. And `strains`.

    Raises:
        ValueError: there are fewer than two experts, or a strain or `n_planes` is out of range.
    """
    _check_pair(checkpoint)
    experts, params = checkpoint.experts[:2], checkpoint.params[:2]
    cutoff = max(e.cutoff for e in experts)
    cuts = [
        (name, *cut)
        for strained in _isotropically_strained(atoms, strains)
        for name, cut in bisected_crystals(strained, cutoff, n_planes).items()
    ]
    # The rows of all crystals in one batch, so that each expert compiles once.
    all_rows = _pad_to_same_width([_rows(experts, frame) for _, frame, _ in cuts])
    partials = [_on_rows(e, p, _concatenate(all_rows))[1] for e, p in zip(experts, params, strict=True)]
    report: dict = {name: {"max": [], "rms": []} for name, _, _ in cuts}
    start = 0
    for (name, frame, assignment), rows in zip(cuts, all_rows):
        chosen = slice(start, start + len(frame.symbols))
        ghost = _ghost_force([g[chosen] for g in partials], rows, assignment)
        report[name]["max"].append(1000 * ghost.max)
        report[name]["rms"].append(1000 * ghost.rms)
        start = chosen.stop
    report["worst"] = max(max(report[name]["max"]) for name, _, _ in cuts)
    report["rms"] = float(np.sqrt(np.mean([np.square(report[name]["rms"]) for name, _, _ in cuts])))
    report["strains"] = [float(strain) for strain in strains]
    return report


def stress_jump(checkpoint: Checkpoint, atoms: Atoms, strains: Sequence[float] = (0.0,)) -> dict:
    """Difference of the first two experts' stresses in the same crystal, expensive minus cheap.

    Across a planar expert boundary the in-plane components of the stress jump by this
    difference. A difference of the normal component is not balanced: it moves the
    atoms until the strains of the two parts differ. A spherical boundary in a crystal
    under isotropic strain is displaced by the isotropic part, the pressure. Atoms keep their
    fractional positions under strain.

    Args:
        checkpoint: at least two experts.
        atoms: a crystal, periodic in all directions.
        strains: relative changes of all lengths of `atoms`; the crystal in the
            middle of the list also gets each strain of `STRAINS`, along the axes x, y and z of `atoms`.

    Returns:
        A dictionary that JSON can store, in GPa with the sign of ASE, a stress as
        `[3][3]` numbers: for
        `"isotropic"` the lists `strain`, `stress` and `pressure`
        (minus a third of the trace), for `"strained"` the lists `name`,
        `strain`, `stress` and `pressure`; over all of them `worst`, the largest
        absolute component, and `worst_pressure`.

    Raises:
        ValueError: there are fewer than two experts, or a strain is out of range.
    """
    _check_pair(checkpoint)
    experts, params = checkpoint.experts[:2], checkpoint.params[:2]
    isotropic = _isotropically_strained(atoms, strains)
    middle = isotropic[len(isotropic) // 2]
    frames = [
        frame_from_atoms(a) for a in [*isotropic, *(_strained(middle, strain) for _, strain in STRAINS)]
    ]
    rows = _concatenate(_pad_to_same_width([_rows(experts, frame) for frame in frames]))
    virials = [
        np.asarray(derivatives.virial(_on_rows(e, p, rows)[1], rows))
        for e, p in zip(experts, params, strict=True)
    ]
    n_atoms = len(atoms)
    jump = (virials[0] - virials[1]).reshape(len(frames), n_atoms, 3, 3).sum(axis=1)
    volumes = np.array([abs(np.linalg.det(frame.cell)) for frame in frames])
    jump /= volumes[:, None, None] * units.GPa
    pressure = -np.trace(jump, axis1=1, axis2=2) / 3
    n = len(isotropic)
    return {
        "isotropic": {
            "strain": [float(strain) for strain in strains],
            "stress": jump[:n].tolist(),
            "pressure": pressure[:n].tolist(),
        },
        "strained": {
            "name": [name for name, _ in STRAINS],
            "strain": [strain.tolist() for _, strain in STRAINS],
            "stress": jump[n:].tolist(),
            "pressure": pressure[n:].tolist(),
        },
        "worst": float(np.abs(jump).max()),
        "worst_pressure": float(np.abs(pressure).max()),
    }


def mismatch(experts: Sequence[Expert], params: Sequence[Params], rows: Neighborhood) -> Mismatch:
    """Differences of the first two experts, row by row.

    Args:
        experts: at least two; the first two are compared.
        params: one parameter tree per expert.
        rows: any rows, in the dtype to compute in.

    Returns:
        Differences of energies and of partial forces. Rows outside a domain
        are compared too; `in_domain` marks the others, for which co-training
        makes the experts agree.

    Raises:
        ValueError: there are fewer than two experts.
    """
    if len(experts) < 2:
        raise ValueError(f"experts must be at least 2, got {len(experts)}.")
    (e_0, g_0), (e_1, g_1) = (_on_rows(e, p, rows) for e, p in zip(experts[:2], params[:2], strict=True))
    partial_force = np.sqrt(np.sum(np.square(g_0 - g_1), axis=(1, 2)))
    in_both = np.all([in_domain(e, rows) for e in experts[:2]], axis=0)
    return Mismatch(e_0 - e_1, partial_force, in_both)


def _check_pair(checkpoint: Checkpoint) -> None:
    if len(checkpoint.experts) < 2:
        raise ValueError(f"checkpoint must hold at least 2 experts, got {len(checkpoint.experts)}.")


def _isotropically_strained(atoms: Atoms, strains: Sequence[float]) -> list[Atoms]:
    """The crystal under each strain; raises `ValueError` where one is out of range, or none is given."""
    if len(strains) == 0 or not all(-1 < strain < np.inf for strain in strains):
        raise ValueError(
            "strains must be relative changes of length above -1, at least one, "
            f"got {[float(strain) for strain in strains]}."
        )
    return [_strained(atoms, strain * np.eye(3)) for strain in strains]


def _strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """The same fractional positions in a strained cell."""
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return strained


def _rows(experts: Sequence[Expert], frame: Frame) -> Neighborhood:
    """Rows of a frame with all neighbours within the largest cutoff, float64."""
    return frame_rows(frame, experts[0].species, max(e.cutoff for e in experts), dtype=np.float64)


def _pad_to_same_width(all_rows: Sequence[Neighborhood]) -> list[Neighborhood]:
    """Pad rows of several frames to the largest number of neighbours among them."""
    max_neighbors = max(rows.mask.shape[1] for rows in all_rows)
    padded = []
    for rows in all_rows:
        n, missing = rows.mask.shape[0], max_neighbors - rows.mask.shape[1]
        padded.append(
            rows._replace(
                displacement=np.pad(rows.displacement, [(0, 0), (0, missing), (0, 0)], constant_values=1.0),
                mask=np.pad(rows.mask, [(0, 0), (0, missing)]),
                neighbor_species=np.pad(rows.neighbor_species, [(0, 0), (0, missing)]),
                neighbor=np.pad(rows.neighbor, [(0, 0), (0, missing)], constant_values=n),
            )
        )
    return padded


def _concatenate(all_rows: Sequence[Neighborhood]) -> Neighborhood:
    """One batch of the rows of all frames; `neighbor` is still an index into the own frame."""
    return Neighborhood(*(np.concatenate(leaves) for leaves in zip(*all_rows)))


def _on_rows(expert: Expert, params: Params, rows: Neighborhood) -> tuple[np.ndarray, np.ndarray]:
    """Energies and partial forces of any number of rows, computed in chunks of fixed shape."""
    compute = jax.jit(partial(energies_and_partial_forces, expert))
    n = rows.mask.shape[0]
    energies, partials = [], []
    for start in range(0, n, CHUNK):
        pick = np.arange(start, start + CHUNK) % n  # the last chunk is completed with rows from the start
        e, g = compute(params, Neighborhood(*(np.asarray(leaf)[pick] for leaf in rows)))
        energies.append(np.asarray(e))
        partials.append(np.asarray(g))
    return np.concatenate(energies)[:n], np.concatenate(partials)[:n]


def _ghost_force(partials: Sequence[np.ndarray], rows: Neighborhood, owner: np.ndarray) -> GhostForce:
    """The ghost force from each expert's partial forces `[n_atoms, K, 3]` and the owners `[n_atoms]`."""
    n_atoms = len(owner)

    def forces_of(g: np.ndarray) -> np.ndarray:
        return np.asarray(derivatives.forces(g, rows, np.arange(n_atoms), n_atoms))

    mixed = forces_of(np.choose(owner[:, None, None], partials))
    forces = mixed - np.choose(owner[:, None], [forces_of(g) for g in partials])
    other = owner[np.minimum(rows.neighbor, n_atoms - 1)] != owner[:, None]
    near = np.any(rows.mask & other, axis=1)
    length = np.linalg.norm(forces, axis=1)
    rms = float(np.sqrt(np.mean(length[near] ** 2))) if near.any() else 0.0
    return GhostForce(float(length.max()), rms, forces, near)


def _checked_assignment(assignment, n_atoms: int, n_experts: int) -> np.ndarray:
    """The assignment as integers; raises `ValueError` where it is not valid."""
    owner = np.asarray(assignment)
    if owner.dtype == bool:
        owner = owner.astype(np.int32)
    if owner.shape != (n_atoms,) or not np.issubdtype(owner.dtype, np.integer):
        raise ValueError(
            f"assignment must be a vector of {n_atoms} integers, "
            f"got shape {owner.shape} and dtype {owner.dtype}."
        )
    if not (owner.min() >= 0 and owner.max() < n_experts):
        raise ValueError(
            f"assignment must lie between 0 and {n_experts - 1}, got {owner.min()} to {owner.max()}."
        )
    return owner


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
