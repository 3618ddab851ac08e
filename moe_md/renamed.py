"""Names of earlier versions and the names that replace them: settings and the public interface.

The error for an old name tells the new one.
"""

# Attributes of `moe_md` and of its packages.
PYTHON = {
    "moe_md.adjoint": "moe_md.gradients",
    "moe_md.analysis.errors.Compared": "moe_md.analysis.errors.ComparedFrame",
    "moe_md.analysis.errors.Outcome": "moe_md.analysis.errors.FramePrediction",
    "moe_md.analysis.errors.WHO": "moe_md.analysis.errors.POTENTIALS",
    "moe_md.analysis.errors.seam_report": "moe_md.analysis.errors.boundary_report",
    "moe_md.analysis.bulk.check_symbol": "moe_md.analysis.strained_cell.check_crystal",
    "moe_md.analysis.bulk.fcc_report": "moe_md.analysis.crystal_report.crystal_report",
    "moe_md.analysis.bulk.phonons": "moe_md.analysis.phonons.phonons",
    "moe_md.analysis.bulk.relax_fcc": "moe_md.analysis.bulk.relax_crystal",
    "moe_md.analysis.bulk_gradients.fcc_crystal": "moe_md.analysis.bulk_gradients.isotropic_crystal",
    "moe_md.analysis.bulk_gradients.mixed_fcc_crystal": (
        "moe_md.analysis.bulk_gradients.mixed_isotropic_crystal"
    ),
    "moe_md.analysis.crystal_report.fcc_report": "moe_md.analysis.crystal_report.crystal_report",
    "moe_md.analysis.expert_boundary.seams": "moe_md.analysis.expert_boundary.bisected_crystals",
    "moe_md.analysis.region_design.centres": "moe_md.analysis.region_design.center_shares",
    "moe_md.analysis.environments.BOND_CUTOFF_FACTOR": "moe_md.analysis.environments.bond_cutoff",
    "moe_md.analysis.surfaces.adsorption": "moe_md.analysis.adsorption.adsorption",
    "moe_md.analysis.surfaces.around_adsorbate": "moe_md.analysis.adsorption.around_adsorbate",
    "moe_md.analysis.surfaces.vacancy_energy": "moe_md.analysis.surfaces.vacancy_energies",
    "moe_md.analysis.seam": "moe_md.analysis.expert_boundary",
    "moe_md.analysis.validation_report": "moe_md.commands.validate_report",
    "moe_md.checkpoint.names": "moe_md.models",
    "moe_md.data.ideal_crystals": "moe_md.data.environments.perfect_crystal",
    "moe_md.data.metal_frames": "moe_md.data.environments.random_rows",
    "moe_md.data.random_metal": "moe_md.data.environments.random_rows",
    "moe_md.data.crystals": "moe_md.data.environments and moe_md.data.structures",
    "moe_md.implicit": "moe_md.gradients",
    "moe_md.reweighting": "moe_md.gradients.reweighting",
    "moe_md.distributed.Sizes": "moe_md.distributed.Capacities",
    "moe_md.distributed.SlabError": "moe_md.simulate.SimulationError",
    "moe_md.distributed.Slabs": "moe_md.distributed.DomainDecomposition",
    "moe_md.gradients.at_rest": "moe_md.gradients.equilibrium",
    "moe_md.gradients.uniform": "moe_md.gradients.isotropic_equilibrium",
    "moe_md.gradients.UNIFORM_STRAIN": "moe_md.gradients.ISOTROPIC_STRAIN",
    "moe_md.interfaces.lammps.Coupling": "moe_md.interfaces.lammps.RankPotential",
    "moe_md.regions.hard": "moe_md.regions.reassigned",
    "moe_md.regions.Weighted": "moe_md.regions.FixedGates",
    "moe_md.simulate.rollout": "moe_md.gradients.rollout",
    "moe_md.simulate.check_rollout": "moe_md.gradients.check_rollout",
}

# Keys of settings files and of the configuration of an expert; options of the command line are named alike.
KEYS = {
    "agree_lots": "agree_random_assignment",
    "agreement_pull": "agreement_gradient_scale",
    "columns": "width",
    "domain": "allowed_species",
    "guide": "inner_potential",
    "layers": "thickness",
    "max_rows": "max_atoms",
    "rows": "width",
    "slow_every": "outer_every",
    "soft_force": "force_downweight_above",
}

# Keys of the table [training] that are now keys of [environments].
MOVED = {
    "ideal_crystal_weight": "perfect_weight",
    "ideal_crystals": "perfect_rows",
    "lattice_constant": "references",
    "max_ideal_strain": "max_perfect_strain",
    "max_rattle": "max_rattle",
    "max_strain": "max_strain",
    "metal": "references",
    "unlabelled_atoms": "environment_rows",
}

# Sections of `moe-md validate` and of `validation.json`.
SECTIONS = {"seam": "expert_boundary"}


def missing_attribute(module: str, name: str) -> AttributeError:
    """The error for an attribute that a module does not have; it names the new attribute of a renamed one."""
    new = PYTHON.get(f"{module}.{name}")
    advice = f": it is now {new}" if new else ""
    return AttributeError(f"module {module!r} has no attribute {name!r}{advice}")


def old_keys(key: str) -> list[str]:
    """Earlier names of a key of settings."""
    return [old for old, new in (*KEYS.items(), *MOVED.items()) if new == key and old != key]
