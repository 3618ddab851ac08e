"""Old names of settings and of the public interface, and what they are called now.

Code written for an earlier version is answered with the new name.
"""

# Attributes of `moe_md` and of its packages.
PYTHON = {
    "moe_md.adjoint": "moe_md.gradients",
    "moe_md.data.crystals": "moe_md.data.environments and moe_md.data.structures",
    "moe_md.data.extxyz": "moe_md.data.reading",
    "moe_md.implicit": "moe_md.gradients",
    "moe_md.reweighting": "moe_md.gradients.reweighting",
    "moe_md.gradients.at_rest": "moe_md.gradients.equilibrium",
    "moe_md.gradients.uniform": "moe_md.gradients.isotropic_equilibrium",
    "moe_md.gradients.UNIFORM_STRAIN": "moe_md.gradients.ISOTROPIC_STRAIN",
    "moe_md.regions.hard": "moe_md.regions.reassigned",
    "moe_md.simulate.rollout": "moe_md.gradients.rollout",
    "moe_md.simulate.check_rollout": "moe_md.gradients.check_rollout",
}

# Keys of settings files and of the configuration of an expert.
KEYS = {
    "agree_lots": "agree_random_assignment",
    "agreement_pull": "agreement_gradient_scale",
    "domain": "allowed_species",
    "environment_rows": "unlabelled_atoms",
    "guide": "inner_potential",
    "max_perfect_strain": "max_ideal_strain",
    "max_rows": "max_atoms",
    "perfect_crystals": "ideal_crystals",
    "perfect_weight": "ideal_crystal_weight",
    "slow_every": "outer_every",
    "soft_force": "force_downweight_above",
}


def missing_attribute(module: str, name: str) -> AttributeError:
    """The error for an attribute that a module does not have; names the new one where it was renamed."""
    new = PYTHON.get(f"{module}.{name}")
    advice = f": it is now {new}" if new else ""
    return AttributeError(f"module {module!r} has no attribute {name!r}{advice}")
