"""Power spectrum, a cheap expert: one small network per centre, none per edge.

    A_q,lm = sum_j b_q(r_ij) Y_lm(r_ij)          per neighbour species
    L_c,lm = sum_q left_cl,q A_q,lm              per centre species; R likewise
    P_cl   = sum_m L_c,lm R_c,lm / sqrt(2l + 1)
    E_i    = scale [N(A_00, P) - N(0)] + shift

Source: the SOAP power spectrum of Bartók, Kondor, Csányi, PRB 87, 184115 (2013),
with radial functions learned as in Drautz, PRB 99, 014104 (2019).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from moe_md.checks import check_value
from moe_md.experts import angular
from moe_md.experts.arguments import (
    MAX_ORDER,
    check_integer,
    check_power,
    check_species,
    check_widths,
    checked_avg_num_neighbors,
)
from moe_md.experts.base import Expert, register_expert
from moe_md.experts.mlp import unit_uniform
from moe_md.experts.network import network_expert
from moe_md.experts.radial import radial_basis
from moe_md.neighbors.rows import Neighborhood


class PowerSpectrumNetwork(nn.Module):
    """Rows of centres to per-centre energies, before scale and shift."""

    allowed_species: Sequence[int]  # species indices that have weights; other neighbours are ignored
    num_species: int
    cutoff: float
    l_max: int
    num_bessels: int
    num_channels: int
    hidden: Sequence[int]
    polynomial_cutoff_p: float
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Float[Array, " n"]:
        vector, distance = angular.safe_displacement(rows.displacement, rows.mask)
        place = (
            jnp.full(self.num_species, -1)
            .at[jnp.asarray(self.allowed_species)]
            .set(jnp.arange(len(self.allowed_species)))
        )
        neighbor = place[rows.neighbor_species]
        mask = rows.mask & (distance < self.cutoff) & (neighbor >= 0)
        # Neighbours lie along the last axis: [n, q, K] and [n, m, K].
        basis = radial_basis(distance, mask, self.cutoff, self.num_bessels, self.polynomial_cutoff_p, axis=-2)
        if len(self.allowed_species) > 1:
            of_species = jax.nn.one_hot(neighbor, len(self.allowed_species), dtype=basis.dtype, axis=-2)
            blocks = of_species[:, :, None] * basis[:, None]
            basis = blocks.reshape(
                basis.shape[0], len(self.allowed_species) * self.num_bessels, basis.shape[-1]
            )
        harmonics = angular.spherical_harmonics(self.l_max, vector, axis=-2)
        density = jnp.einsum("nqk,nmk->nqm", basis, harmonics) / self.avg_num_neighbors**0.5

        center = jnp.maximum(place[rows.center_species], 0)
        radials = density.shape[1]
        mix_shape = (len(self.allowed_species), self.l_max + 1, radials, 2 * self.num_channels)
        mix = self.param("radial_mixing", unit_uniform, mix_shape) / radials**0.5
        zero_shape = (len(self.allowed_species), radials, self.num_channels)
        mix_zero = self.param("density_mixing", unit_uniform, zero_shape) / radials**0.5
        scalars = [self._mixed(mix_zero, center, density[..., :1])[..., 0]]
        for l, s in enumerate(angular.slices(angular.harmonic_irreps(self.l_max))):
            both = self._mixed(mix[:, l], center, density[..., s])
            left, right = jnp.split(both, 2, axis=1)
            scalars.append(jnp.sum(left * right, axis=-1) / (2 * l + 1) ** 0.5)
        return self._centre_network(jnp.concatenate(scalars, axis=-1))

    def _mixed(self, weights: Array, center: Array, density: Array) -> Array:
        """`[n, channels, m]`: radial channels mixed by weights of the centre's species."""
        if len(self.allowed_species) == 1:
            return jnp.einsum("qc,nqm->ncm", weights[0], density)
        return jnp.einsum("nqc,nqm->ncm", weights[center], density)

    def _centre_network(self, x: Array) -> Array:
        """A small network, less its value for a centre without neighbours."""
        # A row of zeros is added to the batch, so that each array of the network is read once.
        x = jnp.concatenate([x, jnp.zeros((1, x.shape[-1]), x.dtype)])
        for layer, width in enumerate(self.hidden):
            weight = self.param(f"weight_{layer}", unit_uniform, (x.shape[-1], width))
            bias = self.param(f"bias_{layer}", unit_uniform, (width,))
            gain = 1.0 if layer == 0 else 2.0**0.5
            x = jax.nn.silu(x @ (weight * (gain / x.shape[-1] ** 0.5)) + 0.3 * bias[None])
        readout = self.param("readout", unit_uniform, (x.shape[-1],))
        energy = x @ (readout / x.shape[-1] ** 0.5)
        return energy[:-1] - energy[-1]


@register_expert
def power_spectrum(
    species: Sequence[str],
    cutoff: float,
    *,
    l_max: int = 3,
    num_bessels: int = 8,
    num_channels: int = 16,
    hidden: Sequence[int] = (64, 64),
    polynomial_cutoff_p: float = 6.0,
    avg_num_neighbors: float = 40.0,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """A cheap expert: a small network of invariants of each centre's neighbour density.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        l_max: highest order of the spherical harmonics.
        num_bessels: radial functions.
        num_channels: invariants per order.
        hidden: widths of the network of a centre.
        polynomial_cutoff_p: power of the envelope.
        avg_num_neighbors: normalises the density.
        allowed_species: species it may meet, as centre or neighbour; default all.
            Neighbours of other species are ignored.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`.

    Raises:
        ValueError: an argument is out of range.
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    check_integer("l_max", l_max, 0, MAX_ORDER)
    check_integer("num_bessels", num_bessels, 1)
    check_integer("num_channels", num_channels, 1)
    check_power(polynomial_cutoff_p)
    check_widths("hidden", hidden)
    check_value("avg_num_neighbors", avg_num_neighbors, float)
    allowed = tuple(species) if allowed_species is None else tuple(allowed_species)
    network = PowerSpectrumNetwork(
        allowed_species=tuple(tuple(species).index(s) for s in allowed),
        num_species=len(species),
        cutoff=float(cutoff),
        l_max=l_max,
        num_bessels=num_bessels,
        num_channels=num_channels,
        hidden=tuple(hidden),
        polynomial_cutoff_p=polynomial_cutoff_p,
        avg_num_neighbors=checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return network_expert("power_spectrum", network, config)
