"""Everything differentiable: trajectories, equilibrium structures and averages.

| function | differentiates |
| --- | --- |
| `rollout` | a short trajectory, storing steps or restarting from checkpoints |
| `reversible_rollout` | a trajectory at constant energy, in the memory of one step |
| `equilibrium` | a relaxed structure (and cell), by the implicit function theorem |
| `isotropic_equilibrium` | a crystal with one free length |
| `reweight` | an equilibrium average, from frames sampled with other parameters |
| `lyapunov_exponent` | nothing: it measures after how many steps a gradient of a trajectory is noise |
"""

from moe_md.gradients import reweighting
from moe_md.gradients.equilibrium import ANY_STRAIN, ISOTROPIC_STRAIN, Equilibrium, equilibrium
from moe_md.gradients.isotropic import IsotropicEquilibrium, isotropic_equilibrium
from moe_md.gradients.lyapunov import TangentGrowth, lyapunov_exponent
from moe_md.gradients.reversible import RoundTrip, reversible_rollout, round_trip
from moe_md.gradients.reweighting import reweight
from moe_md.gradients.rollout import rollout
from moe_md.gradients.solvers import cg, dense, gmres
from moe_md.gradients.trajectory import Rollout, Snapshot, check_rollout
from moe_md.renamed import missing_attribute

__all__ = [
    "ANY_STRAIN",
    "ISOTROPIC_STRAIN",
    "Equilibrium",
    "IsotropicEquilibrium",
    "Rollout",
    "RoundTrip",
    "Snapshot",
    "TangentGrowth",
    "cg",
    "check_rollout",
    "dense",
    "equilibrium",
    "gmres",
    "isotropic_equilibrium",
    "lyapunov_exponent",
    "reversible_rollout",
    "reweight",
    "reweighting",
    "rollout",
    "round_trip",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
