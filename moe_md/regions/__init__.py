"""Regions: which expert owns which atom.

A region is a pytree with three methods,

    gate(position, displacement_fn, near)            -> [n_atoms, n_experts], rows sum to 1
    support(position, displacement_fn, margin, near) -> [n_atoms, n_experts] bool,
                                                        a superset of gate > 0 wherever no atom moved
                                                        by more than half the margin
    spheres(margin)                                  -> which atoms' surroundings it wants in `near`

`near` is what a mixture's lists know (`RegionNeighbors`); without it, `None`, a
region that follows atoms looks at every pair.

Static: `fixed` is any assignment; `slab` and `sphere` make one from positions,
once, with a blend shell of frozen weights if asked for. Regions fixed in space
would break momentum conservation if atoms crossed them, so an atom keeps its
weight.

Moving: `around` follows atoms, `descriptor` a number that each atom's
neighbours say (`coordination`, `committee`, a learned one), `custom` does what
a function says. Gates are part of the energy and their gradient part of the
force, so energy is conserved while weights change; momentum is where gates
depend on atoms relative to atoms.

`union`, `complement` and `nested` build on any of them; `reassigned` makes any of them
switch at once, and `simulate.run` books the work.
"""

from moe_md.regions.combined import Complement, Custom, Nested, Union, complement, custom, nested, union
from moe_md.regions.described import Descriptor, committee, coordination, descriptor
from moe_md.regions.following import Around, around
from moe_md.regions.protocol import NeighborRequest, Region, RegionNeighbors, check_region, switch
from moe_md.regions.reassigned import Reassigned, reassigned
from moe_md.regions.static import Fixed, Weighted, fixed, slab, sphere
from moe_md.renamed import missing_attribute

__all__ = [
    "Around",
    "Complement",
    "Custom",
    "Descriptor",
    "Fixed",
    "NeighborRequest",
    "Nested",
    "Reassigned",
    "Region",
    "RegionNeighbors",
    "Union",
    "Weighted",
    "around",
    "check_region",
    "committee",
    "complement",
    "coordination",
    "custom",
    "descriptor",
    "fixed",
    "nested",
    "reassigned",
    "slab",
    "sphere",
    "switch",
    "union",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
