"""A mixture on several devices of one host: slabs of the box, and halos.

    E = sum_d sum_{i in slab d} sum_e w_ie E_i^e,   F = -dE/dR

The box is cut into equal slabs along one axis, one for each device, which keeps
the atoms of its slab. At each step it is sent the positions of those that lie
within the longest cutoff and the skin of its faces (the halo) and computes the
energies of its own atoms. Differentiating through the exchange sends the
halo's share of the forces back, so forces are those of one device. Atoms move
to another device only where lists are made anew: when one of them has moved by
half the skin, on any device.

    slabs = distributed.mixture(box, experts, params, species, region)  # on all devices
    state = slabs.scatter(position, masses, temperature_K=300.0, key=jax.random.key(0))
    result = distributed.run(slabs, state, simulate.nve(shift_fn, 1.0), n_steps=1000)
    position = slabs.gather(result.state).position  # in the order of the atoms

Under jit all capacities (`Sizes`) are the same on each device. Where one runs
out the loop stops and the host goes back to the last good state, with more.

Source:
    Halo exchange: Plimpton, J. Comput. Phys. 117, 1 (1995). That it is its
    transpose which carries the forces is what lets JAX derive it.
"""

from moe_md.distributed.dynamics import Frame, Result, run
from moe_md.distributed.energy import SlabError, Slabs, mixture
from moe_md.distributed.slabs import Atoms, Lists, Sizes, State

__all__ = ["Atoms", "Frame", "Lists", "Result", "Sizes", "SlabError", "Slabs", "State", "mixture", "run"]
