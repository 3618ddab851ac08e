"""Validation: what a checkpoint gets right, expert by expert and as a mixture.

    errors    on labelled frames, by kind, species, environment and distance to the seam
    crystal   lattice constant, elastic constants, equation of state, phonons
    surfaces  vacancy and surface energies, adsorption
    seam      ghost force and stress jump in perfect crystals
    dynamics  a mixed run against an all-expensive one

Each is a section of its own and can be left out. What is found goes to
`validation.json`, and from there into `report.md` and its pictures.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ase import Atoms

from moe_md.analysis import errors, expert_boundary, paired_runs, surfaces, validation_report
from moe_md.analysis.bulk import fcc_report, relax_fcc
from moe_md.analysis.environments import SHELL, Rule, environments, near_other_species, top_layers
from moe_md.checkpoint import Checkpoint
from moe_md.data import structures
from moe_md.data.dataset import Dataset, digest
from moe_md.data.reading import frame_from_atoms
from moe_md.files import write_atomic
from moe_md.plots import validation as validation_plots
from moe_md.settings import SECTIONS, ValidateSettings

LARGEST_STRAIN = 0.02  # of the crystals that are cut in two


def small(settings: ValidateSettings) -> ValidateSettings:
    """The same in little time: few steps. For tests."""
    dynamics = {
        "layers": 4,
        "relax_steps": 5,
        "equilibration_steps": 50,
        "production_steps": 400,
        "log_every": 4,
        "blocks": 5,
    }
    return replace(settings, surface_steps=5, strains=3, **dynamics)


class Plan(NamedTuple):
    """What all sections share."""

    model: Checkpoint
    settings: ValidateSettings
    lattice_constant: float  # Å, of the expensive expert
    rule: Rule
    slab: Atoms  # of the dynamics

    @property
    def nearest(self) -> float:
        """Å, between nearest neighbours."""
        return self.lattice_constant / np.sqrt(2)


def plan(model: Checkpoint, settings: ValidateSettings) -> Plan:
    """Check everything that can be checked before work begins.

    Raises:
        ValueError: the checkpoint does not fit the settings.
    """
    errors.check_two(model)
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
    settings = _sized(settings, a / np.sqrt(2), max(expensive.cutoff, cheap.cutoff))
    slab = structures.slab_with_adsorbate(
        settings.metal, a, _size(settings), adsorbate=settings.adsorbate, vacuum=settings.vacuum
    )
    found = Plan(model, settings, a, rule, slab)
    if "dynamics" in settings.chosen:
        _check_slab(found)
    return found


def _sized(settings: ValidateSettings, nearest: float, cutoff: float) -> ValidateSettings:
    """With as many columns and rows as a cutoff asks for, 4 x 6 at least, where nobody said."""
    columns = max(4, int(2 * cutoff / nearest) + 1)
    rows = max(6, 2 * int(2 * cutoff / (np.sqrt(3) * nearest)) + 2)
    return replace(
        settings,
        columns=columns if settings.columns is None else settings.columns,
        rows=rows if settings.rows is None else settings.rows,
    )


def _size(settings: ValidateSettings) -> tuple[int, int, int]:
    """Columns, rows and layers of settings that `_sized` completed."""
    assert settings.columns is not None and settings.rows is not None
    return settings.columns, settings.rows, settings.layers


def _check_slab(shared: Plan) -> None:
    known, settings = shared.model.experts[0].species, shared.settings
    unknown = sorted(set(shared.slab.symbols) - set(known))
    if unknown:
        raise ValueError(
            f"adsorbate must be of the species {known} that the checkpoint knows, got {settings.adsorbate!r}."
        )
    cutoff = max(e.cutoff for e in shared.model.experts)
    for name, axis in (("columns", 0), ("rows", 1), ("vacuum", 2)):
        edge = shared.slab.cell.lengths()[axis]
        if not edge > 2 * cutoff:
            raise ValueError(
                f"{name} must make the slab wider than twice the cutoff, 2 x {cutoff} Å, got"
                f" {getattr(settings, name)} for {edge:.2f} Å."
            )
    paired_runs.check_shared(shared.rule(frame_from_atoms(shared.slab)))


def run(
    model: Checkpoint,
    dataset: Dataset,
    settings: ValidateSettings,
    folder,
    say: Callable[[str], None] = print,
    *,
    names: dict[str, str] | None = None,
) -> dict:
    """All sections that were chosen, in float64 (labelled frames in float32, as in training).

    Args:
        model: two experts, the expensive one first.
        dataset: labelled frames.
        settings: see `ValidateSettings`.
        folder: where everything is written; made if it is not there.
        say: told about each stage.
        names: what the report calls `checkpoint`, `data` and `split`.

    Returns:
        What `validation.json` holds.

    Raises:
        ValueError: the checkpoint or the data do not fit the settings.
        SimulationError: the dynamics failed.
    """
    begun = time.perf_counter()

    def stage(text: str) -> None:
        say(f"[{time.perf_counter() - begun:5.0f} s] {text}")

    with jax.enable_x64(True):
        shared = plan(model, settings)
        names = {"checkpoint": "the checkpoint", "data": "the data", "split": "all", **(names or {})}
        stage(f"lattice constant of {settings.metal} {shared.lattice_constant:.4f} Å (expensive expert)")
        about: dict[str, Any] = {
            **names,
            "frames": len(dataset.frames),
            "data_digest": digest(dataset),
            "experts": [e.config["builder"] for e in model.experts],
            "domain": list(model.experts[1].allowed_species),
            "cutoff": model.experts[1].cutoff,
            "lattice_constant": shared.lattice_constant,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "seconds": {},
        }
        content: dict[str, Any] = {"about": about, "settings": asdict(shared.settings)}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for section in (s for s in SECTIONS if s in settings.chosen):
            started = time.perf_counter()
            content[section] = _DO[section](shared, dataset, stage)
            content["about"]["seconds"][section] = time.perf_counter() - started
            content = write(folder, content, [section])  # what is found is kept, whatever comes next
            stage(f"{section}: done")
    stage(f"wrote {folder / 'report.md'}")
    return content


def write(folder: Path, content: dict, redraw: Sequence[str] = SECTIONS) -> dict:
    """Write a report with the pictures of some sections; the content as `validation.json` holds it."""
    content = json.loads(json.dumps(_finite(content)))
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / "validation.json", text.encode())
    for section in (s for s in redraw if s in content):
        for name, figure in validation_plots.pictures(section, content[section]).items():
            figure.savefig(folder / f"{name}.png", dpi=150)
    write_atomic(folder / "report.md", validation_report.markdown(content).encode())
    return content


def _finite(value):
    """Plain values; what is not finite, None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return value if not isinstance(value, float) or np.isfinite(value) else None


def _errors(shared: Plan, dataset: Dataset, stage) -> dict:
    metal = [s for s in shared.model.experts[0].species if s in shared.model.experts[1].allowed_species]
    environment_fn = partial(environments, metal=metal, bond=SHELL * shared.nearest)
    with jax.enable_x64(False):
        compared = errors.compare(shared.model, dataset, shared.rule, max_atoms=shared.settings.max_atoms)
    return errors.report(compared, environment_fn)


def _crystal(shared: Plan, dataset: Dataset, stage) -> dict:
    return fcc_report(shared.model, shared.settings.metal, guess=shared.lattice_constant)


def _surfaces(shared: Plan, dataset: Dataset, stage) -> dict:
    """Vacancy and surfaces under each expert, at its lattice constant; CO under the first and the mixture."""
    model, metal = shared.model, shared.settings.metal
    cheap = relax_fcc(
        model.experts[1], model.params[1], metal, guess=shared.lattice_constant
    ).lattice_constant
    found: dict = {"vacancy": {}, "surfaces": {}}
    for who, region, a in (("expensive", 0, shared.lattice_constant), ("cheap", 1, cheap)):
        given: dict[str, Any] = {"lattice_constant": a, "max_steps": shared.settings.surface_steps}
        found["vacancy"][who] = surfaces.vacancy_energy(model, region, metal, **given)
        found["surfaces"][who] = surfaces.surface_energies(model, region, metal, **given)
        stage(f"vacancy and surfaces of the {who} expert")
    if {"C", "O"} <= set(model.experts[0].allowed_species):
        regions = {"expensive": 0, "mixed": lambda atoms: shared.rule(frame_from_atoms(atoms))}
        options: dict[str, Any] = {
            "lattice_constant": shared.lattice_constant,
            "max_steps": shared.settings.surface_steps,
        }
        found["adsorption"] = {
            who: surfaces.adsorption(model, region, metal, **options) for who, region in regions.items()
        }
    return found


def _seam(shared: Plan, dataset: Dataset, stage) -> dict:
    strains = np.linspace(-LARGEST_STRAIN, LARGEST_STRAIN, shared.settings.strains)
    lattice_constants = [float(shared.lattice_constant * (1 + s)) for s in strains]
    return {
        "strain": strains.tolist(),
        "ghost_force": expert_boundary.ghost_force_report(
            shared.model, lattice_constants, symbol=shared.settings.metal
        ),
        "stress_jump": expert_boundary.stress_jump(
            shared.model, lattice_constants, symbol=shared.settings.metal
        ),
    }


def _dynamics(shared: Plan, dataset: Dataset, stage) -> dict:
    settings = shared.settings
    return paired_runs.paired_runs(
        shared.model,
        shared.slab,
        shared.rule,
        nearest=shared.nearest,
        planar=settings.region == "top_layers",
        temperature_K=settings.temperature_K,
        timestep_fs=settings.timestep_fs,
        relax_steps=settings.relax_steps,
        equilibration_steps=settings.equilibration_steps,
        production_steps=settings.production_steps,
        log_every=settings.log_every,
        n_blocks=settings.blocks,
        seed=settings.seed,
        say=stage,
    )


_DO = {"errors": _errors, "crystal": _crystal, "surfaces": _surfaces, "seam": _seam, "dynamics": _dynamics}
