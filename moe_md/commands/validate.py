"""Validation of a checkpoint: its accuracy, expert by expert and as a mixture.

    errors           on labelled frames, by kind, species, environment and distance to the expert boundary
    crystal          lattice constant, elastic constants, equation of state, phonons
    surfaces         vacancy and surface energies, adsorption
    expert_boundary  ghost force and stress jump in perfect crystals
    dynamics         a run of the mixture beside a run of the expensive expert

Each section can be left out. Results are stored in `validation.json`, from which
`report.md` and its pictures are made.
"""

import importlib.util
import json
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ase import Atoms

from moe_md import checkpoint as checkpoints
from moe_md.analysis import errors, expert_boundary, paired_runs, surfaces
from moe_md.analysis.bulk import relax_fcc
from moe_md.analysis.crystal_report import fcc_report
from moe_md.analysis.environments import (
    BOND_CUTOFF_FACTOR,
    Rule,
    environments,
    near_other_species,
    top_layers,
)
from moe_md.checkpoint import Checkpoint
from moe_md.commands import frames, settings_file, validate_report
from moe_md.data import structures
from moe_md.data.dataset import Dataset, digest
from moe_md.data.reading import frame_from_atoms
from moe_md.experts.base import check_two_experts
from moe_md.files import write_atomic
from moe_md.plots import validation as validation_plots
from moe_md.settings import SECTIONS, ValidateSettings
from moe_md.settings.data import DATA

MAX_STRAIN = 0.02  # of the crystals in the section expert_boundary


def smoke_settings(settings: ValidateSettings) -> ValidateSettings:
    """The same settings with few steps and strains, for tests."""
    return replace(
        settings,
        surface_steps=5,
        strains=3,
        layers=4,
        relax_steps=5,
        equilibration_steps=50,
        production_steps=400,
        log_every=4,
        blocks=5,
    )


class Plan(NamedTuple):
    """Input of all sections."""

    model: Checkpoint
    settings: ValidateSettings
    lattice_constant: float  # Å, of the expensive expert
    rule: Rule  # assigns the atoms of a frame to the experts of the mixture
    slab: Atoms  # structure of the section dynamics

    @property
    def nearest(self) -> float:
        """Nearest-neighbour distance, Å."""
        return self.lattice_constant / np.sqrt(2)


def make_plan(model: Checkpoint, settings: ValidateSettings) -> Plan:
    """Check the checkpoint against the settings and build the slab, before any section is computed.

    Raises:
        ValueError: the checkpoint does not fit the settings.
    """
    check_two_experts(model.experts, "experts of the checkpoint", strictly_local=True)
    expensive, cheap = model.experts
    for name, expert in zip(("expensive", "cheap"), model.experts):
        if settings.metal not in expert.allowed_species:
            raise ValueError(
                f"metal must be among the allowed_species of the {name} expert, {expert.allowed_species}, "
                f"got {settings.metal!r}."
            )
    if "crystal" in settings.chosen and importlib.util.find_spec("phonopy") is None:
        raise ValueError(
            "sections must leave out crystal where phonopy is not installed: pip install 'moe_md[validate]'."
        )
    a = relax_fcc(expensive, model.params[0], settings.metal).lattice_constant
    rule = (
        near_other_species(cheap.allowed_species, cheap.cutoff + settings.region_margin)
        if settings.region == "near"
        else top_layers(cheap.allowed_species, settings.region_layers, a / np.sqrt(2))
    )
    settings = _with_slab_size(settings, a / np.sqrt(2), max(expensive.cutoff, cheap.cutoff))
    slab = structures.slab_with_adsorbate(
        settings.metal, a, _size(settings), adsorbate=settings.adsorbate, vacuum=settings.vacuum
    )
    plan = Plan(model, settings, a, rule, slab)
    if "dynamics" in settings.chosen:
        _check_slab(plan)
    return plan


def _with_slab_size(settings: ValidateSettings, nearest: float, cutoff: float) -> ValidateSettings:
    """Settings with default columns and rows filled in: wider than twice the cutoff, at least 4 x 6."""
    columns = max(4, int(2 * cutoff / nearest) + 1)
    rows = max(6, 2 * int(2 * cutoff / (np.sqrt(3) * nearest)) + 2)
    return replace(
        settings,
        columns=columns if settings.columns is None else settings.columns,
        rows=rows if settings.rows is None else settings.rows,
    )


def _size(settings: ValidateSettings) -> tuple[int, int, int]:
    """Columns, rows and layers of settings completed by `_with_slab_size`."""
    assert settings.columns is not None and settings.rows is not None
    return settings.columns, settings.rows, settings.layers


def _check_slab(plan: Plan) -> None:
    """Raise `ValueError` where the section dynamics cannot run on the slab."""
    species, settings = plan.model.experts[0].species, plan.settings
    if not set(plan.slab.symbols) <= set(species):
        raise ValueError(
            f"adsorbate must be of the species {species} of the checkpoint, got {settings.adsorbate!r}."
        )
    cutoff = max(e.cutoff for e in plan.model.experts)
    for name, axis in (("columns", 0), ("rows", 1), ("vacuum", 2)):
        edge = plan.slab.cell.lengths()[axis]
        if not edge > 2 * cutoff:
            raise ValueError(
                f"{name} must make the slab wider than twice the cutoff, 2 x {cutoff} Å, got"
                f" {getattr(settings, name)} for {edge:.2f} Å."
            )
    paired_runs.check_shared(plan.rule(frame_from_atoms(plan.slab)))


def command(settings: ValidateSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md validate`.

    Args:
        settings: the `[validate]` table.
        parsed: further options of the command.
        log: takes lines of text.

    Returns:
        The content of `validation.json`.
    """
    model = checkpoints.load(parsed.checkpoint)
    data = frames.data_settings(parsed)
    split = parsed.split
    if split is None:
        recorded = parsed.validation_fraction or model.settings.get("validation_fraction")
        split = "validation" if data.file == DATA and recorded else "all"
    dataset = frames.load(data, model.experts[0].species)
    dataset = frames.split(dataset, model, split, parsed.validation_fraction)
    frames.log_levels(model, dataset, log)
    settings = smoke_settings(settings) if parsed.small else settings
    settings_file.echo(parsed.out, {"data": data, "validate": settings}, parsed.typed)
    names = {"checkpoint": str(parsed.checkpoint), "data": data.file, "split": split}
    return run(model, dataset, settings, parsed.out, log, names=names)


def run(
    model: Checkpoint,
    dataset: Dataset,
    settings: ValidateSettings,
    folder,
    log: Callable[[str], None] = print,
    *,
    names: dict[str, str] | None = None,
) -> dict:
    """Compute the chosen sections in float64 (labelled frames in float32, as in training).

    Args:
        model: two experts, the expensive one first.
        dataset: labelled frames.
        settings: see `ValidateSettings`.
        folder: folder of all files; made where it does not exist.
        log: called with a line of text after each stage.
        names: what the report calls `checkpoint`, `data` and `split`.

    Returns:
        What `validation.json` holds.

    Raises:
        ValueError: the checkpoint or the data do not fit the settings.
        SimulationError: the dynamics failed.
    """
    begun = time.perf_counter()

    def log_stage(text: str) -> None:
        log(f"[{time.perf_counter() - begun:5.0f} s] {text}")

    with jax.enable_x64(True):
        plan = make_plan(model, settings)
        names = {"checkpoint": "the checkpoint", "data": "the data", "split": "all", **(names or {})}
        log_stage(f"lattice constant of {settings.metal} {plan.lattice_constant:.4f} Å (expensive expert)")
        about: dict[str, Any] = {
            **names,
            "frames": len(dataset.frames),
            "data_digest": digest(dataset),
            "experts": [e.config["builder"] for e in model.experts],
            "domain": list(model.experts[1].allowed_species),
            "cutoff": model.experts[1].cutoff,
            "lattice_constant": plan.lattice_constant,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "seconds": {},
        }
        content: dict[str, Any] = {"about": about, "settings": asdict(plan.settings)}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for section in (s for s in SECTIONS if s in settings.chosen):
            started = time.perf_counter()
            content[section] = _COMPUTE[section](plan, dataset, log_stage)
            content["about"]["seconds"][section] = time.perf_counter() - started
            content = write(folder, content, [section])  # stored even if a later section fails
            log_stage(f"{section}: done")
    log_stage(f"wrote {folder / 'report.md'}")
    return content


def write(folder: Path, content: dict, redraw: Sequence[str] = SECTIONS) -> dict:
    """Write `validation.json`, `report.md` and the pictures of some sections; returns the stored content."""
    content = json.loads(json.dumps(_finite(content)))
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / "validation.json", text.encode())
    for section in (s for s in redraw if s in content):
        for name, figure in validation_plots.pictures(section, content[section]).items():
            figure.savefig(folder / f"{name}.png", dpi=150)
    write_atomic(folder / "report.md", validate_report.markdown(content).encode())
    return content


def _finite(value):
    """The value as plain Python objects, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return value if not isinstance(value, float) or np.isfinite(value) else None


def _errors(plan: Plan, dataset: Dataset, log_stage) -> dict:
    metal = [s for s in plan.model.experts[0].species if s in plan.model.experts[1].allowed_species]
    environment_fn = partial(environments, metal=metal, bond_cutoff=BOND_CUTOFF_FACTOR * plan.nearest)
    with jax.enable_x64(False):
        compared = errors.compare(plan.model, dataset, plan.rule, max_atoms=plan.settings.max_atoms)
    return errors.report(compared, environment_fn)


def _crystal(plan: Plan, dataset: Dataset, log_stage) -> dict:
    return fcc_report(plan.model, plan.settings.metal, guess=plan.lattice_constant)


def _surfaces(plan: Plan, dataset: Dataset, log_stage) -> dict:
    """Vacancy and surfaces under each expert, at its lattice constant; CO under expert 0 and the mixture."""
    model, metal = plan.model, plan.settings.metal
    cheap = relax_fcc(model.experts[1], model.params[1], metal, guess=plan.lattice_constant).lattice_constant
    section: dict = {"vacancy": {}, "surfaces": {}}
    for name, expert, a in (("expensive", 0, plan.lattice_constant), ("cheap", 1, cheap)):
        options: dict[str, Any] = {"lattice_constant": a, "max_steps": plan.settings.surface_steps}
        section["vacancy"][name] = surfaces.vacancy_energy(model, expert, metal, **options)
        section["surfaces"][name] = surfaces.surface_energies(model, expert, metal, **options)
        log_stage(f"vacancy and surfaces of the {name} expert")
    if {"C", "O"} <= set(model.experts[0].allowed_species):
        regions = {"expensive": 0, "mixed": lambda atoms: plan.rule(frame_from_atoms(atoms))}
        options = {"lattice_constant": plan.lattice_constant, "max_steps": plan.settings.surface_steps}
        section["adsorption"] = {
            name: surfaces.adsorption(model, region, metal, **options) for name, region in regions.items()
        }
    return section


def _expert_boundary(plan: Plan, dataset: Dataset, log_stage) -> dict:
    strains = np.linspace(-MAX_STRAIN, MAX_STRAIN, plan.settings.strains)
    lattice_constants = [float(plan.lattice_constant * (1 + s)) for s in strains]
    metal = plan.settings.metal
    return {
        "strain": strains.tolist(),
        "ghost_force": expert_boundary.ghost_force_report(plan.model, lattice_constants, symbol=metal),
        "stress_jump": expert_boundary.stress_jump(plan.model, lattice_constants, symbol=metal),
    }


def _dynamics(plan: Plan, dataset: Dataset, log_stage) -> dict:
    settings = plan.settings
    return paired_runs.paired_runs(
        plan.model,
        plan.slab,
        plan.rule,
        nearest=plan.nearest,
        planar=settings.region == "top_layers",
        temperature_K=settings.temperature_K,
        timestep_fs=settings.timestep_fs,
        relax_steps=settings.relax_steps,
        equilibration_steps=settings.equilibration_steps,
        production_steps=settings.production_steps,
        log_every=settings.log_every,
        n_blocks=settings.blocks,
        seed=settings.seed,
        log=log_stage,
    )


_COMPUTE = {
    "errors": _errors,
    "crystal": _crystal,
    "surfaces": _surfaces,
    "expert_boundary": _expert_boundary,
    "dynamics": _dynamics,
}
