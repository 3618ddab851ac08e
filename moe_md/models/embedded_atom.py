"""Embedded atom: pairs and densities of learned radial functions, an embedding function per species.

    A_sq  = sum_j b_q(r_ij) over neighbours j of species s
    rho_c = sum_sq mix_sqc A_sq                        per centre species, a few densities c
    E_i   = 1/2 sum_sq pair_sq A_sq + F(rho) - F(0)    per centre species

The first sum is half the pair potential phi(r) = sum_q pair_sq b_q(r), and rho_c a sum of
radial functions, as they must be; written so, a neighbour costs its radial
functions and nothing else. There are no angles.

Source: Daw and Baskes, PRB 29, 6443 (1984), with one density; a density per
ordered pair of species as Finnis and Sinclair, Phil. Mag. A 50, 45 (1984).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from moe_md.models import angular
from moe_md.models.mlp import unit_uniform
from moe_md.models.radial import radial_basis
from moe_md.neighborhood import Neighborhood


class EmbeddedAtomNetwork(nn.Module):
    """Rows of centres to per-centre energies, before scale and shift."""

    domain: Sequence[int]  # species indices that have weights; other neighbours are not seen
    num_species: int
    cutoff: float
    num_bessels: int
    num_densities: int
    hidden: Sequence[int]
    polynomial_cutoff_p: float
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Array:
        _, distance = angular.safe_displacement(rows.displacement, rows.mask)
        place = jnp.full(self.num_species, -1).at[jnp.asarray(self.domain)].set(jnp.arange(len(self.domain)))
        neighbor = place[rows.neighbor_species]
        mask = rows.mask & (distance < self.cutoff) & (neighbor >= 0)
        basis = radial_basis(distance, mask, self.cutoff, self.num_bessels, self.polynomial_cutoff_p)
        if len(self.domain) > 1:
            of_species = jax.nn.one_hot(neighbor, len(self.domain), dtype=basis.dtype)
            sums = jnp.einsum("nks,nkq->nsq", of_species, basis).reshape(len(basis), -1)
        else:
            sums = jnp.sum(basis, axis=1)
        sums = sums / (self.avg_num_neighbors * sums.shape[1]) ** 0.5

        # For every species of the centre; its own is picked at the end.
        n_species, radials = len(self.domain), sums.shape[1]
        pair = self.param("pair", unit_uniform, (n_species, radials))
        mix = self.param("density_mixing", unit_uniform, (n_species, radials, self.num_densities))
        energy = 0.5 * sums @ pair.T + self._embedding(jnp.einsum("nq,sqc->nsc", sums, mix))
        if n_species == 1:
            return energy[:, 0]
        center = jnp.maximum(place[rows.center_species], 0)
        return jnp.take_along_axis(energy, center[:, None], axis=1)[:, 0]

    def _embedding(self, x: Array) -> Array:
        """`[n, s, densities]` to `[n, s]`: a network per species, less its value at zero density."""
        # The row of zeros travels along, so that each weight is read once.
        x = jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])
        n_species = x.shape[1]
        for layer, width in enumerate(self.hidden):
            weight = self.param(f"weight_{layer}", unit_uniform, (n_species, x.shape[-1], width))
            bias = self.param(f"bias_{layer}", unit_uniform, (n_species, width))
            gain = 1.0 if layer == 0 else 2.0**0.5
            weight = weight * (gain / x.shape[-1] ** 0.5)
            x = jax.nn.silu(jnp.einsum("nsi,sio->nso", x, weight) + 0.3 * bias[None])
        readout = self.param("readout", unit_uniform, (n_species, x.shape[-1]))
        energy = jnp.einsum("nsi,si->ns", x, readout / x.shape[-1] ** 0.5)
        return energy[:-1] - energy[-1:]
