"""A mixture on several devices of one host, by domain decomposition.

    E = sum_d sum_{i in subdomain d} sum_e g_ie E_i^e,   F = -dE/dR

The box is divided along one axis into equal subdomains, one for each device, which
owns the atoms in it. At each step a device receives the positions of atoms within
the longest cutoff and the skin of its faces (the halo), and computes the energies of
its own atoms. Differentiation through this exchange returns the halo's part of the
forces, so the forces are those of one device. Atoms move to another device only when
lists are rebuilt: when one of them, on any device, has moved by half the skin.

    decomposition = distributed.mixture(box, potentials, species, region)  # on all devices
    state = decomposition.scatter(position, masses, temperature_K=300.0, key=jax.random.key(0))
    result = distributed.run(decomposition, state, simulate.nve(shift_fn, 1.0), n_steps=1000)
    position = decomposition.gather(result.state).position  # in the order of the atoms

Under jit all capacities (`Capacities`) are the same on each device. Where one
overflows, the loop stops. The host then returns to the last valid state and
allocates larger arrays.

Source:
    Halo exchange: Plimpton, J. Comput. Phys. 117, 1 (1995). JAX derives the transpose
    of the exchange, which returns the forces.
"""

from moe_md.distributed.builder import DomainDecomposition, mixture
from moe_md.distributed.dynamics import Frame, Result, run
from moe_md.distributed.partition import Atoms, Capacities, Lists, State
from moe_md.renamed import missing_attribute

__all__ = [
    "Atoms",
    "Capacities",
    "DomainDecomposition",
    "Frame",
    "Lists",
    "Result",
    "State",
    "mixture",
    "run",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
