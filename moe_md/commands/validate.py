"""Validation of a checkpoint: its accuracy, expert by expert and as a mixture.

    errors           on labelled frames, by kind, species, environment and distance to the expert boundary
    crystal          cell, elastic constants, equation of state, phonons
    surfaces         vacancy and surface energies, adsorption
    expert_boundary  ghost force and stress jump in perfect crystals
    dynamics         a run of the mixture beside a run of the expensive expert

Crystals are the references of the checkpoint, or are read from files. Each section can be
left out. Results are stored in `validation.json`, from which `report.md` and its pictures
are made.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md.analysis import adsorption, environments, errors, expert_boundary, paired_runs, surfaces
from moe_md.analysis.bulk import relax_crystal
from moe_md.analysis.crystal_report import crystal_report
from moe_md.checkpoint import Checkpoint
from moe_md.commands import frames, settings_file, validate_report
from moe_md.commands.validate_plan import (
    Plan,
    ReferenceCrystal,
    closest_in_composition,
    make_plan,
    region_and_rule,
)
from moe_md.data.dataset import Dataset, digest
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.data.references import describe_reference
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
        thickness=7.0,
        relax_steps=5,
        equilibration_steps=50,
        production_steps=400,
        log_every=4,
        blocks=5,
    )


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
        plan = make_plan(model, dataset, settings, log_stage)
        names = {"checkpoint": "the checkpoint", "data": "the data", "split": "all", **(names or {})}
        content: dict[str, Any] = {"about": _about(plan, dataset, names), "settings": asdict(settings)}
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


def _about(plan: Plan, dataset: Dataset, names: dict[str, str]) -> dict[str, Any]:
    """Entry `about` of `validation.json`."""
    model = plan.model
    return {
        **names,
        "frames": len(dataset.frames),
        "data_digest": digest(dataset),
        "experts": [e.config["builder"] for e in model.experts],
        "domain": list(model.experts[1].allowed_species),
        "domain_by_environment": model.experts[1].familiarity is not None,
        "cutoff": model.experts[1].cutoff,
        "references": {name: describe_reference(c.reference) for name, c in plan.crystals.items()},
        "region": {"errors": plan.region, **({"dynamics": plan.dynamics.region} if plan.dynamics else {})},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": {},
    }


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
    crystals = [crystal.relaxed.atoms for crystal in plan.crystals.values()]
    cutoffs = [environments.bond_cutoff(atoms) for atoms in crystals]
    expected = [environments.coordination(atoms, cutoff) for atoms, cutoff in zip(crystals, cutoffs)]

    def environment_fn(frame: Frame) -> np.ndarray:
        if not crystals:
            return np.full(len(frame.symbols), "unknown")
        k = closest_in_composition(frame.symbols, crystals)
        return environments.environments(frame, expected[k], cutoffs[k])

    with jax.enable_x64(False):
        compared = errors.compare(plan.model, dataset, plan.rule, max_atoms=plan.settings.max_atoms)
    return errors.report(compared, environment_fn)


def _of_each_crystal(compute: Callable, plan: Plan, dataset: Dataset, log_stage) -> dict:
    """A section that has an entry for each reference crystal."""
    section = {}
    for name, crystal in plan.crystals.items():
        section[name] = compute(plan, crystal, log_stage)
        log_stage(f"{name}: computed")
    return section


def _crystal(plan: Plan, crystal: ReferenceCrystal, log_stage) -> dict:
    return crystal_report(plan.model, crystal.reference)


def _surfaces(plan: Plan, crystal: ReferenceCrystal, log_stage) -> dict:
    """Vacancies and surfaces under each expert, at its relaxed cell; CO under expert 0 and the mixture."""
    model, steps = plan.model, plan.settings.surface_steps
    section: dict = {"vacancies": {}, "surfaces": {}}
    for number, name in enumerate(("expensive", "cheap")):
        atoms = crystal.relaxed.atoms
        if name == "cheap":
            atoms = relax_crystal(*model.potentials[1], atoms).atoms
        section["vacancies"][name] = surfaces.vacancy_energies(model, atoms, number, max_steps=steps)
        section["surfaces"][name] = surfaces.surface_energies(model, atoms, number, max_steps=steps)
        log_stage(f"vacancies and surfaces of the {name} expert")
    knows_co = {"C", "O"} <= set(model.experts[0].allowed_species)
    if plan.settings.adsorbate == "CO" and crystal.is_fcc_element and knows_co:
        section["adsorption"] = _adsorption(plan, crystal)
    elif plan.settings.adsorbate:
        log_stage("no adsorption energies: they need CO on an fcc element, and C and O among the species")
    return section


def _adsorption(plan: Plan, crystal: ReferenceCrystal) -> dict:
    """CO on the fcc (111) surface, under expert 0 and the mixture."""
    symbol = crystal.reference.atoms.get_chemical_symbols()[0]
    _, rule = region_and_rule(plan.model, plan.settings, {symbol, "C", "O"}, plan.crystals)
    regions = {"expensive": 0, "mixed": lambda atoms: rule(frame_from_atoms(atoms))}
    return {
        name: adsorption.adsorption(
            plan.model,
            region,
            symbol=symbol,
            lattice_constant=np.sqrt(2) * crystal.nearest,
            max_steps=plan.settings.surface_steps,
        )
        for name, region in regions.items()
    }


def _expert_boundary(plan: Plan, crystal: ReferenceCrystal, log_stage) -> dict:
    strains = np.linspace(-MAX_STRAIN, MAX_STRAIN, plan.settings.strains).tolist()
    atoms = crystal.relaxed.atoms
    return {
        "strain": strains,
        "ghost_force": expert_boundary.ghost_force_report(plan.model, atoms, strains),
        "stress_jump": expert_boundary.stress_jump(plan.model, atoms, strains),
    }


def _dynamics(plan: Plan, dataset: Dataset, log_stage) -> dict:
    settings, dynamics = plan.settings, plan.dynamics
    assert dynamics is not None
    found = paired_runs.paired_runs(
        plan.model,
        dynamics.atoms,
        dynamics.rule,
        crystal=dynamics.crystal,
        planar=dynamics.region == "top_layers",
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
    return {"structure": dynamics.text, **found}


_COMPUTE = {
    "errors": _errors,
    "crystal": partial(_of_each_crystal, _crystal),
    "surfaces": partial(_of_each_crystal, _surfaces),
    "expert_boundary": partial(_of_each_crystal, _expert_boundary),
    "dynamics": _dynamics,
}
