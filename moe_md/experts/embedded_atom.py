"""Embedded atom: pairs and densities of learned radial functions, an embedding function per species.

    A_sq  = sum_j b_q(r_ij) over neighbours j of species s
    rho_c = sum_sq mix_sqc A_sq                        per centre species, a few densities c
    E_i   = 1/2 sum_sq pair_sq A_sq + F(rho) - F(0)    per centre species

The first sum is half the pair potential phi(r) = sum_q pair_sq b_q(r), and rho_c a sum of
radial functions. In this form a neighbour costs only its radial functions. There are
no angles.

Source: Daw and Baskes, PRB 29, 6443 (1984), with one density; a density per
ordered pair of species as Finnis and Sinclair, Phil. Mag. A 50, 45 (1984).
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
    check_integer,
    check_power,
    check_species,
    check_widths,
    checked_avg_num_neighbors,
)
from moe_md.experts.base import Expert, network_expert, register_expert
from moe_md.experts.mlp import unit_uniform
from moe_md.experts.radial import radial_basis
from moe_md.neighbors.rows import Neighborhood


class EmbeddedAtomNetwork(nn.Module):
    """Rows of centres to per-centre energies, before scale and shift."""

    allowed_species: Sequence[int]  # species indices that have weights; other neighbours are ignored
    num_species: int
    cutoff: float
    num_bessels: int
    num_densities: int
    hidden: Sequence[int]
    polynomial_cutoff_p: float
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Float[Array, " n"]:
        _, distance = angular.safe_displacement(rows.displacement, rows.mask)
        place = (
            jnp.full(self.num_species, -1)
            .at[jnp.asarray(self.allowed_species)]
            .set(jnp.arange(len(self.allowed_species)))
        )
        neighbor = place[rows.neighbor_species]
        mask = rows.mask & (distance < self.cutoff) & (neighbor >= 0)
        basis = radial_basis(distance, mask, self.cutoff, self.num_bessels, self.polynomial_cutoff_p)
        if len(self.allowed_species) > 1:
            of_species = jax.nn.one_hot(neighbor, len(self.allowed_species), dtype=basis.dtype)
            sums = jnp.einsum("nks,nkq->nsq", of_species, basis).reshape(len(basis), -1)
        else:
            sums = jnp.sum(basis, axis=1)
        sums = sums / (self.avg_num_neighbors * sums.shape[1]) ** 0.5

        # Computed for every species of the centre; that of the centre is selected at the end.
        n_species, radials = len(self.allowed_species), sums.shape[1]
        pair = self.param("pair", unit_uniform, (n_species, radials))
        mix = self.param("density_mixing", unit_uniform, (n_species, radials, self.num_densities))
        energy = 0.5 * sums @ pair.T + self._embedding(jnp.einsum("nq,sqc->nsc", sums, mix))
        if n_species == 1:
            return energy[:, 0]
        center = jnp.maximum(place[rows.center_species], 0)
        return jnp.take_along_axis(energy, center[:, None], axis=1)[:, 0]

    def _embedding(self, x: Array) -> Array:
        """`[n, s, densities]` to `[n, s]`: a network per species, less its value at zero density."""
        # A row of zeros is added to the batch, so that each array of the network is read once.
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


@register_expert
def embedded_atom(
    species: Sequence[str],
    cutoff: float,
    *,
    num_bessels: int = 8,
    num_densities: int = 2,
    hidden: Sequence[int] = (16, 16),
    polynomial_cutoff_p: float = 6.0,
    avg_num_neighbors: float = 40.0,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """The cheapest learned expert: pair energies and the energy of embedding in a density.

    E_i = 1/2 sum_j phi(r_ij) + F(rho_i) - F(0), rho_i = sum_j psi(r_ij), with
    phi and psi sums of Bessel functions times the envelope, learned per species
    of centre and neighbour, and F a small network per species of the centre.
    There is no dependence on angles: suitable for close-packed metals, not for molecules.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        num_bessels: radial functions.
        num_densities: components of rho; one is the classical model.
        hidden: widths of the network F.
        polynomial_cutoff_p: power of the envelope.
        avg_num_neighbors: normalises the sums over neighbours.
        allowed_species: species it may meet, as centre or neighbour; default all.
            Neighbours of other species are ignored.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Daw and Baskes, PRB 29, 6443 (1984).

    >>> expert = embedded_atom(("Pt", "Cu"), 5.0, num_densities=1)
    >>> expert.init(jax.random.key(0))["network"]["pair"].shape
    (2, 16)
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    check_integer("num_bessels", num_bessels, 1)
    check_integer("num_densities", num_densities, 1)
    check_power(polynomial_cutoff_p)
    check_widths("hidden", hidden)
    check_value("avg_num_neighbors", avg_num_neighbors, float)
    allowed = tuple(species) if allowed_species is None else tuple(allowed_species)
    network = EmbeddedAtomNetwork(
        allowed_species=tuple(tuple(species).index(s) for s in allowed),
        num_species=len(species),
        cutoff=float(cutoff),
        num_bessels=num_bessels,
        num_densities=num_densities,
        hidden=tuple(hidden),
        polynomial_cutoff_p=polynomial_cutoff_p,
        avg_num_neighbors=checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return network_expert("embedded_atom", network, config)
