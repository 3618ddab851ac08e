"""Experts: potentials as two pure functions of rows of centres.

An expert knows displacements only, so one expert serves molecular dynamics,
training, ASE and an MPI engine. Forces, virial and stress follow from the
partial forces g = dE_i / d displacement of each row.
"""

from moe_md.experts.allegro import allegro
from moe_md.experts.base import (
    Expert,
    Potential,
    build,
    cast,
    check_two_experts,
    potentials,
    register_expert,
)
from moe_md.experts.chunks import chunked_atom_energies, energies_and_partial_forces
from moe_md.experts.density_moments import density_moments
from moe_md.experts.domain import in_domain, warn_out_of_domain
from moe_md.experts.embedded_atom import embedded_atom
from moe_md.experts.lennard_jones import lennard_jones
from moe_md.experts.neighbor_sums import NeighborSums, sum_over_neighbors
from moe_md.experts.nequip import nequip
from moe_md.experts.power_spectrum import power_spectrum

__all__ = [
    "Expert",
    "NeighborSums",
    "Potential",
    "allegro",
    "build",
    "cast",
    "check_two_experts",
    "chunked_atom_energies",
    "density_moments",
    "embedded_atom",
    "energies_and_partial_forces",
    "in_domain",
    "lennard_jones",
    "nequip",
    "potentials",
    "power_spectrum",
    "register_expert",
    "sum_over_neighbors",
    "warn_out_of_domain",
]
