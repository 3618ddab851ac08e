"""Input of a validation: reference crystals, regions of the mixture, and the structure of its dynamics."""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from moe_md.analysis import paired_runs
from moe_md.analysis.bulk import Crystal, relax_crystal
from moe_md.analysis.environments import Rule, bond_cutoff, near_other_species, top_layers
from moe_md.checkpoint import Checkpoint
from moe_md.commands.system import periodic_box
from moe_md.data import structures
from moe_md.data.dataset import Dataset
from moe_md.data.reading import frame_from_atoms
from moe_md.data.references import Reference, describe_reference, read_references
from moe_md.data.slabs import rectangular_slab
from moe_md.data.structure_file import read_structure
from moe_md.experts.base import check_two_experts
from moe_md.neighbors.rows import image_pairs
from moe_md.settings import ValidateSettings

MAX_CRYSTALS = 6  # references of the checkpoint that are validated without being named
OF_CRYSTALS = ("crystal", "surfaces", "expert_boundary", "dynamics")  # sections that need a perfect crystal
MIN_WIDTH = 10.0  # Å, default of the slab of dynamics
MARGIN = 0.1  # Å, added to twice the cutoff
RIGHT_ANGLE = 1e-6  # largest cosine of an angle of a rectangular box


class ReferenceCrystal(NamedTuple):
    """A perfect crystal, relaxed under the expensive expert."""

    reference: Reference
    relaxed: Crystal

    @property
    def nearest(self) -> float:
        """Nearest-neighbour distance, Å."""
        atoms = self.relaxed.atoms
        _, _, displacement = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, bond_cutoff(atoms))
        return float(np.linalg.norm(displacement, axis=1).min())

    @property
    def is_fcc_element(self) -> bool:
        """Whether it is a face-centred cubic crystal of one element."""
        return len(self.reference.atoms) == 1 and self.reference.space_group == "Fm-3m (225)"


class Dynamics(NamedTuple):
    """Input of the section dynamics."""

    atoms: Atoms  # in a rectangular box, periodic in all directions
    text: str  # what the report calls the structure
    region: str  # near or top_layers
    rule: Rule
    crystal: Atoms  # the relaxed crystal that it is most like


class Plan(NamedTuple):
    """Input of all sections."""

    model: Checkpoint
    settings: ValidateSettings
    crystals: dict[str, ReferenceCrystal]  # by formula, with the space group where formulas repeat
    region: str  # near or top_layers, of the mixture on labelled frames
    rule: Rule  # assigns the atoms of a labelled frame to the experts of the mixture
    dynamics: Dynamics | None


def make_plan(
    model: Checkpoint, dataset: Dataset, settings: ValidateSettings, log: Callable[[str], None]
) -> Plan:
    """Check the checkpoint against the settings, before any section is computed.

    Args:
        model: two experts, the expensive one first.
        dataset: the labelled frames.
        settings: see `ValidateSettings`.
        log: called with lines on the crystals and the regions.

    Raises:
        ValueError: the checkpoint does not fit the settings.
    """
    check_two_experts(model.experts, "experts of the checkpoint", strictly_local=True)
    if "crystal" in settings.chosen and importlib.util.find_spec("phonopy") is None:
        raise ValueError(
            "sections must leave out crystal where phonopy is not installed: pip install 'moe_md[validate]'."
        )
    references = _named(_references(model, settings, log))
    crystals = {name: _relaxed(model, name, reference) for name, reference in references.items()}
    for crystal in crystals.values():
        volume = crystal.relaxed.volume
        log(f"{describe_reference(crystal.reference)}: {volume:.3f} Å^3 per atom (expensive expert)")
    symbols = {symbol for frame in dataset.frames for symbol in frame.symbols}
    region, rule = region_and_rule(model, settings, symbols, crystals)
    dynamics = _dynamics(model, settings, crystals, log) if "dynamics" in settings.chosen else None
    if "errors" in settings.chosen:
        log(f"region of the mixture on labelled frames: {region}")
    return Plan(model, settings, crystals, region, rule, dynamics)


def _references(model: Checkpoint, settings: ValidateSettings, log) -> list[Reference]:
    """The perfect crystals whose species are in the domain of both experts."""
    references = read_references(settings.references) if settings.references else model.references
    allowed = set(model.experts[0].allowed_species) & set(model.experts[1].allowed_species)
    chosen = []
    for reference in references:
        outside = sorted(set(reference.atoms.symbols) - allowed)
        if not reference.is_crystal:
            log(f"left out, as it is no crystal: {describe_reference(reference)}")
        elif outside:
            warnings.warn(
                f"references must be of species in the domain of both experts, {', '.join(sorted(allowed))}:"
                f" {describe_reference(reference)} is left out for its {', '.join(outside)}.",
                stacklevel=2,
            )
        else:
            chosen.append(reference)
    needing = [section for section in OF_CRYSTALS if section in settings.chosen]
    if needing and not chosen:
        found = "; ".join(map(describe_reference, references)) or "none in the checkpoint"
        raise ValueError(
            f"references must hold a crystal of species in the domain of both experts, {sorted(allowed)}, for"
            f" {', '.join(needing)}, got {found}: give its file, --references bulk.cif, or --sections errors."
        )
    if len(chosen) > MAX_CRYSTALS and not settings.references:
        log(
            f"the first {MAX_CRYSTALS} of {len(chosen)} crystals of the checkpoint are validated: choose"
            " others with --references"
        )
        chosen = chosen[:MAX_CRYSTALS]
    return chosen


def _relaxed(model: Checkpoint, name: str, reference: Reference) -> ReferenceCrystal:
    """A reference relaxed under the expensive expert."""
    try:
        return ReferenceCrystal(reference, relax_crystal(*model.expensive, reference.atoms))
    except ValueError as error:
        raise ValueError(
            f"references must be crystals of the expensive expert, got {name}: {error}"
        ) from error


def _named(references: Sequence[Reference]) -> dict[str, Reference]:
    """References by formula; by formula and number of the space group where formulas repeat."""
    formulas = [reference.formula for reference in references]
    named: dict[str, Reference] = {}
    for reference in references:
        name = reference.formula
        if formulas.count(name) > 1:
            name += "-" + reference.space_group.split("(")[-1].rstrip(")")
        copies = sum(other == name or other.startswith(f"{name}-") for other in named)
        named[f"{name}-{copies + 1}" if copies else name] = reference
    return named


def closest_in_composition(symbols: Sequence[str], crystals: Sequence[Atoms]) -> int:
    """Number of the crystal whose species most atoms of a structure have.

    Of several such crystals it is the one whose shares of the species differ least.

    Args:
        symbols: of the structure's atoms.
        crystals: one or more.

    >>> from ase.build import bulk
    >>> closest_in_composition(["Pt", "Pt", "C", "O"], [bulk("Si"), bulk("Pt")])
    1
    """
    here = Counter(symbols)

    def distance(crystal: Atoms) -> tuple[int, float]:
        there = Counter(crystal.get_chemical_symbols())
        foreign = sum(n for symbol, n in here.items() if symbol not in there)
        shares = (abs(here[s] / len(symbols) - there[s] / len(crystal)) for s in here | there)
        return foreign, sum(shares)

    return min(range(len(crystals)), key=lambda k: distance(crystals[k]))


def region_and_rule(
    model: Checkpoint, settings: ValidateSettings, symbols: set[str], crystals: dict[str, ReferenceCrystal]
) -> tuple[str, Rule]:
    """The region of the mixture on structures of some species: its name, and its rule.

    By default it is near where some of the species are outside the cheap expert's domain, or
    where there is no crystal; else top_layers.

    Raises:
        ValueError: the settings choose top_layers, and there is no crystal.
    """
    cheap = model.experts[1]
    outside = symbols - set(cheap.allowed_species)
    region = settings.region or ("near" if outside or not crystals else "top_layers")
    if region == "near":
        return region, near_other_species(cheap.allowed_species, cheap.cutoff + settings.region_margin)
    if not crystals:
        raise ValueError(
            "region must be near where there is no reference crystal, got top_layers: give --references"
            " bulk.cif, which tells the distance of layers."
        )
    nearest = next(iter(crystals.values())).nearest
    return region, top_layers(cheap.allowed_species, settings.region_layers, nearest)


def _dynamics(
    model: Checkpoint, settings: ValidateSettings, crystals: dict[str, ReferenceCrystal], log
) -> Dynamics:
    """Structure and region of the section dynamics, checked."""
    cutoff = max(expert.cutoff for expert in model.experts)
    width = settings.width or max(MIN_WIDTH, 2 * cutoff + MARGIN)
    name, crystal = next(iter(crystals.items()))
    if settings.structure:
        atoms, text = _structure(settings.structure, cutoff), settings.structure
    elif settings.adsorbate:
        atoms, text = _slab_with_adsorbate(name, crystal, width, settings)
    else:
        try:
            atoms, plane = rectangular_slab(
                crystal.relaxed.atoms,
                width=width,
                thickness=settings.thickness,
                vacuum=settings.vacuum,
            )
        except ValueError as error:
            raise ValueError(f"structure must be given for dynamics of {name}: {error}") from error
        text = f"{name}({plane})"
    _check_structure(atoms, model, settings)
    relaxed = [crystal.relaxed.atoms for crystal in crystals.values()]
    k = closest_in_composition(atoms.get_chemical_symbols(), relaxed)
    like = dict([list(crystals.items())[k]])
    region, rule = region_and_rule(model, settings, set(atoms.symbols), like)
    owner = rule(frame_from_atoms(atoms))
    paired_runs.check_shared(owner)
    reason = "" if settings.region else _REASON[region]
    log(f"dynamics: {text}; region {region}{reason}, {np.sum(owner == 0)} of {len(atoms)} atoms")
    return Dynamics(atoms, text, region, rule, relaxed[k])


_REASON = {
    "near": " as the structure has species outside the cheap expert's domain",
    "top_layers": " as the structure has no species outside the cheap expert's domain",
}


def _structure(path: str, cutoff: float) -> Atoms:
    """A structure from a file, in a rectangular box that is periodic in all directions."""
    atoms = read_structure(path)
    if atoms.constraints:
        raise ValueError(
            f"structure must have no constraints, got {len(atoms.constraints)} in {path}: all atoms move in a"
            " validation. Remove them (move_mask, selective dynamics) in a copy of the file."
        )
    atoms = periodic_box(atoms, cutoff)
    angles = atoms.cell.angles()
    if np.abs(np.cos(np.radians(angles))).max() > RIGHT_ANGLE:
        raise ValueError(
            f"structure must have a rectangular cell, got angles of {angles.round(2).tolist()} degrees in"
            f" {path}: repeat it to one with ase.build.make_supercell."
        )
    atoms.set_cell(atoms.cell.lengths(), scale_atoms=True)  # vectors along x, y and z
    return atoms


def _slab_with_adsorbate(
    name: str, crystal: ReferenceCrystal, width: float, settings: ValidateSettings
) -> tuple[Atoms, str]:
    """A (111) slab of an fcc element with a molecule on a top site."""
    if not crystal.is_fcc_element:
        raise ValueError(
            f"adsorbate must be empty where the first reference is no fcc element, got {settings.adsorbate!r}"
            f" on {name}: give the slab with its molecule as --structure."
        )
    nearest = crystal.nearest
    size = (
        int(np.ceil(width / nearest)),
        2 * int(np.ceil(width / (np.sqrt(3) * nearest))),
        int(np.ceil(settings.thickness / (np.sqrt(2 / 3) * nearest))),
    )
    atoms = structures.slab_with_adsorbate(
        crystal.reference.atoms.get_chemical_symbols()[0],
        np.sqrt(2) * nearest,
        size,
        adsorbate=settings.adsorbate,
        vacuum=settings.vacuum,
    )
    return atoms, f"{name}(111) with {settings.adsorbate}"


def _check_structure(atoms: Atoms, model: Checkpoint, settings: ValidateSettings) -> None:
    """Raise `ValueError` where the structure of dynamics has unknown species or a box that is too small."""
    species = model.experts[0].species
    if not set(atoms.symbols) <= set(species):
        raise ValueError(
            f"{'structure' if settings.structure else 'adsorbate'} must be of the species {species} of the"
            f" checkpoint, got {settings.structure or settings.adsorbate!r}."
        )
    cutoff = max(expert.cutoff for expert in model.experts)
    for axis, (name, edge) in enumerate(zip(("width", "width", "vacuum"), atoms.cell.lengths())):
        if not edge > 2 * cutoff:
            name = "structure" if settings.structure else name
            raise ValueError(
                f"{name} must make the box wider than twice the cutoff, 2 x {cutoff:g} Å, got"
                f" {getattr(settings, name)} for {edge:.2f} Å along {'xyz'[axis]}."
            )
