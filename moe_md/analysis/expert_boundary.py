"""Ghost forces, stress jumps and mismatch at the boundary between two experts.

In a perfect crystal every force is zero by symmetry, under any single expert. Cut the
crystal in two parts and assign one expert to each. The forces that this causes,

    F_k = -sum_i dE_i^{e(i)} / dR_k, i over the atoms of both parts,

are the ghost forces: an artefact of the expert boundary alone. They vanish for every
boundary if the partial forces g_ik of the experts agree.

Two experts can also differ in the stress of the same strained crystal. The stress
jump is this difference; it acts across the expert boundary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ase.build import bulk
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from moe_md import derivatives, units
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.data.structures import FLAT_FACETS, fcc_supercell
from moe_md.experts.base import Expert, Params
from moe_md.experts.chunks import energies_and_partial_forces
from moe_md.experts.domain import in_domain
from moe_md.neighbors.rows import Neighborhood
from moe_md.renamed import missing_attribute

CHUNK = 64  # rows computed at a time
STRAINS = (  # name and strain tensor [3, 3], applied to the crystal in the middle of the list
    ("stretched along [100] by 1 %", np.diag([0.01, 0.0, 0.0])),
    ("compressed along [100] by 1 %", np.diag([-0.01, 0.0, 0.0])),
    ("stretched along [111] by 1 %", np.full((3, 3), 0.01 / 3)),
    ("compressed along [111] by 1 %", np.full((3, 3), -0.01 / 3)),
    (
        "sheared, [010] planes along [100], by 1 %",
        np.array([[0.0, 0.005, 0.0], [0.005, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ),
    ("sheared at constant volume, [100] against [010], by 1 %", np.diag([0.005, -0.005, 0.0])),
)


class GhostForce(NamedTuple):
    """Forces on a perfect crystal that is assigned to several experts."""

    max: float  # eV/Å, the longest force
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
    """Forces on a crystal whose atoms are assigned to several experts.

    Args:
        experts: any number.
        params: one parameter tree per expert.
        frame: a perfect crystal of any size; neighbours include images. For any
            other structure the result is the forces of the mixture.
        assignment: the expert of each atom.

    Returns:
        The forces and their size. The force on an atom whose neighbours all have its
        own expert is zero; such atoms are left out of `rms`.

    Raises:
        ValueError: lengths do not match, an assigned expert does not exist, or a
            species is unknown.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Pt",), 5.0, sigma=2.5446)
    >>> crystal = fcc_supercell("Pt", 3.92, 2)
    >>> params = expert.init(None)
    >>> ghost_force([expert, expert], [params, params], crystal, crystal.positions[:, 0] < 3).max < 1e-6
    True
    """
    owner = _checked_assignment(assignment, len(frame.symbols), len(experts))
    rows = _rows(experts, frame)
    partials = [_on_rows(e, p, rows)[1] for e, p in zip(experts, params, strict=True)]
    return _ghost_force(partials, rows, owner)


def bisected_crystals(
    symbol: str, lattice_constant: float, cutoff: float
) -> dict[str, tuple[Frame, Int[np.ndarray, " _"]]]:
    """Perfect fcc crystals, each cut in two parts.

    Planes come in pairs, as the crystals are periodic. They are so far apart that no
    atom has neighbours across both. The cells are one atom wide: neighbours are images.

    Args:
        symbol: chemical symbol.
        lattice_constant: Å.
        cutoff: Å, the largest of the experts'.

    Returns:
        For `"100"`, `"111"` (planes) and `"sphere"` (of radius `cutoff`, its centre
        not a lattice point) the crystal and the expert of each atom.
    """
    crystals = {}
    for name, period in (("100", 2), ("111", 3)):
        build, spacing, _ = FLAT_FACETS[name]
        half = int(np.ceil(2 * cutoff / (spacing * lattice_constant)))
        half += -half % period  # the stacking sequence is periodic
        atoms = build(symbol, size=(1, 1, 2 * half), a=lattice_constant, periodic=True)
        layer = np.rint((atoms.positions[:, 2] - atoms.positions[:, 2].min()) / (spacing * lattice_constant))
        crystals[name] = frame_from_atoms(atoms), (layer >= half).astype(np.int32)
    repeat = int(np.ceil(4 * cutoff / lattice_constant))
    crystal = fcc_supercell(symbol, lattice_constant, repeat)
    center = lattice_constant * (repeat / 2 + np.array([0.11, 0.23, 0.37]))
    distance = np.linalg.norm(crystal.positions - center, axis=1)
    crystals["sphere"] = crystal, (distance > cutoff).astype(np.int32)
    return crystals


def ghost_force_report(
    checkpoint: Checkpoint, lattice_constants: Sequence[float], *, symbol: str = "Pt"
) -> dict:
    """Ghost forces between the first two experts, for two planes and a sphere.

    Args:
        checkpoint: at least two experts.
        lattice_constants: Å, of the crystals; usually within 2 % of the relaxed one.
        symbol: the element of the crystal.

    Returns:
        A dictionary that JSON can store, in meV/Å: for each of `"100"`, `"111"` and
        `"sphere"` the lists `max` and `rms` over lattice constants; over all of
        them `worst`, the largest force, and `rms`. And `lattice_constants`, Å.

    Raises:
        ValueError: there are fewer than two experts, or no lattice constant.
    """
    if len(checkpoint.experts) < 2:
        raise ValueError(f"checkpoint must hold at least 2 experts, got {len(checkpoint.experts)}.")
    if len(lattice_constants) == 0:
        raise ValueError("lattice_constants must not be empty.")
    experts, params = checkpoint.experts[:2], checkpoint.params[:2]
    cutoff = max(e.cutoff for e in experts)
    cuts = [
        (name, *cut) for a in lattice_constants for name, cut in bisected_crystals(symbol, a, cutoff).items()
    ]
    # The rows of all crystals in one batch, so that each expert compiles once.
    all_rows = _pad_to_same_width([_rows(experts, frame) for _, frame, _ in cuts])
    partials = [_on_rows(e, p, _concatenate(all_rows))[1] for e, p in zip(experts, params, strict=True)]
    report: dict = {name: {"max": [], "rms": []} for name, _, _ in cuts}
    start = 0
    for (name, frame, assignment), rows in zip(cuts, all_rows):
        atoms = slice(start, start + len(frame.symbols))
        ghost = _ghost_force([g[atoms] for g in partials], rows, assignment)
        report[name]["max"].append(1000 * ghost.max)
        report[name]["rms"].append(1000 * ghost.rms)
        start = atoms.stop
    report["worst"] = max(max(report[name]["max"]) for name, _, _ in cuts)
    report["rms"] = float(np.sqrt(np.mean([np.square(report[name]["rms"]) for name, _, _ in cuts])))
    report["lattice_constants"] = [float(a) for a in lattice_constants]
    return report


def stress_jump(checkpoint: Checkpoint, lattice_constants: Sequence[float], *, symbol: str = "Pt") -> dict:
    """Difference of the first two experts' stresses in the same perfect crystal, expensive minus cheap.

    Across a planar expert boundary the in-plane components of the stress jump by this
    difference. A difference of the normal component is not balanced: it moves the
    atoms until the strains of the two parts differ. A spherical boundary in a crystal
    under isotropic strain is displaced by the isotropic part, the pressure.

    Args:
        checkpoint: at least two experts.
        lattice_constants: Å, crystals under isotropic strain; the one in the
            middle of the list also gets each strain of `STRAINS`.
        symbol: the element of the crystal.

    Returns:
        A dictionary that JSON can store, in GPa with the sign of ASE, a stress as
        `[3][3]` numbers: for
        `"isotropic"` the lists `lattice_constant` (Å), `stress` and `pressure`
        (minus a third of the trace), for `"strained"` the lists `name`,
        `strain`, `stress` and `pressure`; over all of them `worst`, the largest
        absolute component, and `worst_pressure`.

    Raises:
        ValueError: there are fewer than two experts, no lattice constant, or
            one that is not positive.
    """
    if len(checkpoint.experts) < 2:
        raise ValueError(f"checkpoint must hold at least 2 experts, got {len(checkpoint.experts)}.")
    if len(lattice_constants) == 0 or not all(0 < a < np.inf for a in lattice_constants):
        raise ValueError(
            f"lattice_constants must be positive (Å), at least one, got {list(lattice_constants)}."
        )
    experts, params = checkpoint.experts[:2], checkpoint.params[:2]
    middle = lattice_constants[len(lattice_constants) // 2]
    frames = []
    for a, strain in [
        *((a, np.zeros((3, 3))) for a in lattice_constants),
        *((middle, strain) for _, strain in STRAINS),
    ]:
        atoms = bulk(symbol, "fcc", a=a)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        frames.append(frame_from_atoms(atoms))
    rows = _concatenate(_pad_to_same_width([_rows(experts, frame) for frame in frames]))
    virials = [
        np.asarray(derivatives.virial(_on_rows(e, p, rows)[1], rows))
        for e, p in zip(experts, params, strict=True)
    ]
    volumes = np.array([abs(np.linalg.det(frame.cell)) for frame in frames])
    jump = (virials[0] - virials[1]) / volumes[:, None, None] / units.GPa
    pressure = -np.trace(jump, axis1=1, axis2=2) / 3
    n = len(lattice_constants)
    return {
        "isotropic": {
            "lattice_constant": [float(a) for a in lattice_constants],
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
    g = np.choose(owner[:, None, None], partials)
    forces = np.asarray(derivatives.forces(g, rows, np.arange(n_atoms), n_atoms))
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
