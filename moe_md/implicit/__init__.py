"""Structures at rest as differentiable functions of what they depend on.

At rest the gradient of the energy, or of the enthalpy H = E + p V where the cell may
strain, is zero whatever the parameters t are,

    f(z, t) = dH/dz = 0,    dz/dt = -(d2H/dz2)^-1 d2H/dz dt,    z: positions and strain,

so the derivative follows from the structure alone: no matter how it was found,
nothing of the way there is stored. Second derivatives of H are never formed;
they act on vectors, forward over reverse, inside an iterative solver. H itself
does not change with z to first order: its gradient needs no solver (Hellmann
and Feynman; the envelope theorem), its second derivatives do. At a saddle point
all of this holds as well, but d2H/dz2 is indefinite: `gmres` or `dense`, not `cg`.

`simulate.relax` walks downhill on the host; `at_rest` takes it from there with
a few of Newton's steps, under jit and to rounding if asked for, and attaches the
derivative (`jax.lax.custom_root`). The crystal of one free length is `uniform`'s.

Source: Blondel et al., Efficient and modular implicit differentiation, NeurIPS
2022, arXiv:2105.15183.
"""

from moe_md.implicit.crystals import Uniform, uniform
from moe_md.implicit.structures import ANY_STRAIN, UNIFORM_STRAIN, AtRest, at_rest, cg, dense, gmres

__all__ = ["ANY_STRAIN", "UNIFORM_STRAIN", "AtRest", "Uniform", "at_rest", "cg", "dense", "gmres", "uniform"]
