"""How positions advance: constant energy, temperature or pressure, and minimisation. One method a file."""

from moe_md.simulate.integrators.base import Evaluation, Integrator
from moe_md.simulate.integrators.frozen import freeze
from moe_md.simulate.integrators.langevin import expert_friction, langevin
from moe_md.simulate.integrators.nose_hoover import nose_hoover
from moe_md.simulate.integrators.npt import npt
from moe_md.simulate.integrators.nve import nve
from moe_md.simulate.integrators.respa import respa

__all__ = [
    "Evaluation",
    "Integrator",
    "expert_friction",
    "freeze",
    "langevin",
    "nose_hoover",
    "npt",
    "nve",
    "respa",
]
