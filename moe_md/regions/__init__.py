"""Regions: which expert owns which atom.

A region is a pytree with a gate, the share of each atom's energy that each expert
supplies. `Region` in `regions.protocol` lists all its methods. The main two are

    gate(position, displacement_fn, neighbors)            -> [n_atoms, n_experts], rows sum to 1
    support(position, displacement_fn, margin, neighbors) -> [n_atoms, n_experts] bool,
                                                             the entries with a gate above zero, also
                                                             after moves by up to half the margin

`neighbors` are the lists of a mixture (`RegionNeighbors`). Where it is None, `around`
compares all pairs of seeds and atoms.

Static regions: `fixed` takes any assignment. `slab` and `sphere` make one from the
current positions, with a shell of constant gates if asked for. An atom keeps its
gate when it moves: gates fixed in space would not conserve momentum.

Dynamic regions: `around` follows atoms. `descriptor` evaluates a scalar of each
atom's neighbours (`coordination`, `committee`, `unfamiliar`, a learned one). `grown`
follows the atoms inside another region. `custom` evaluates a function. Gates are part
of the energy and their gradient is part of the force, so the energy is conserved while
gates change. Momentum is conserved if gates depend on positions of atoms relative to
each other only.

`union`, `complement` and `nested` combine regions. `reassigned` lets atoms switch
expert at once, and `simulate.run` accumulates the switching work.
"""

from moe_md.regions.combined import Complement, Custom, Nested, Union, complement, custom, nested, union
from moe_md.regions.described import Descriptor, committee, coordination, descriptor, unfamiliar
from moe_md.regions.following import Around, around
from moe_md.regions.grown import Grown, grown
from moe_md.regions.protocol import (
    NeighborRequest,
    Region,
    RegionNeighbors,
    SupportNeighbors,
    SupportRequest,
    check_region,
    switch,
)
from moe_md.regions.reassigned import Reassigned, reassigned
from moe_md.regions.static import Fixed, FixedGates, fixed, slab, sphere
from moe_md.renamed import missing_attribute

__all__ = [
    "Around",
    "Complement",
    "Custom",
    "Descriptor",
    "Fixed",
    "FixedGates",
    "Grown",
    "NeighborRequest",
    "Nested",
    "Reassigned",
    "Region",
    "RegionNeighbors",
    "SupportNeighbors",
    "SupportRequest",
    "Union",
    "around",
    "check_region",
    "committee",
    "complement",
    "coordination",
    "custom",
    "descriptor",
    "fixed",
    "grown",
    "nested",
    "reassigned",
    "slab",
    "sphere",
    "switch",
    "unfamiliar",
    "union",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
