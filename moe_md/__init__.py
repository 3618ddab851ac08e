"""moe_md: expensive and cheap potentials as one differentiable energy."""

from moe_md import adjoint, derivatives, distributed, experts, implicit, regions, reweighting, simulate, units
from moe_md.checkpoint import Checkpoint, load, save
from moe_md.mixture import mixture_neighbor_list
from moe_md.training.cotrain import cotrain

__all__ = [
    "Checkpoint",
    "adjoint",
    "cotrain",
    "derivatives",
    "distributed",
    "experts",
    "implicit",
    "load",
    "mixture_neighbor_list",
    "regions",
    "reweighting",
    "save",
    "simulate",
    "units",
]
