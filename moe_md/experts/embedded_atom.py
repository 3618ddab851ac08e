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
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.checks import check_value
from moe_md.experts.arguments import (
    check_integer,
    check_power,
    check_species,
    check_widths,
    checked_avg_num_neighbors,
)
from moe_md.experts.base import Expert, register_expert
from moe_md.experts.mlp import unit_uniform
from moe_md.experts.neighbor_sums import of_center_species, sum_over_neighbors
from moe_md.experts.network import sums_expert
from moe_md.experts.radial import radial_functions
from moe_md.neighbors.components import RowComponents


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

    def setup(self) -> None:
        """Parameters of each species of the centre."""
        n_species, radials = len(self.allowed_species), len(self.allowed_species) * self.num_bessels
        self.pair = self.param("pair", unit_uniform, (n_species, radials))
        self.mix = self.param("density_mixing", unit_uniform, (n_species, radials, self.num_densities))
        widths = (self.num_densities, *self.hidden)
        self.weights = [
            self.param(f"weight_{layer}", unit_uniform, (n_species, before, width))
            for layer, (before, width) in enumerate(zip(widths, self.hidden))
        ]
        self.biases = [
            self.param(f"bias_{layer}", unit_uniform, (n_species, width))
            for layer, width in enumerate(self.hidden)
        ]
        self.readout = self.param("readout", unit_uniform, (n_species, widths[-1]))

    def __call__(self, rows: RowComponents) -> Float[Array, " n"]:
        """Per-centre energies."""
        return self.energies(self.sums(rows), rows.center_species)

    def sums(self, rows: RowComponents) -> tuple[Float[Array, " n"], ...]:
        """A, ordered by s and q; neighbours are of allowed species."""
        x, y, z = rows.displacement
        distance = jnp.sqrt(x * x + y * y + z * z)
        basis = radial_functions(
            distance, distance < self.cutoff, self.cutoff, self.num_bessels, self.polynomial_cutoff_p
        )
        if len(self.allowed_species) == 1:
            return sum_over_neighbors(tuple(basis))
        is_species = [rows.neighbor_species == s for s in self.allowed_species]
        return sum_over_neighbors(tuple(jnp.where(each, b, 0.0) for each in is_species for b in basis))

    def energies(
        self, sums: Sequence[Float[Array, " n"]], center_species: Int[Array | np.ndarray, " n"]
    ) -> Float[Array, " n"]:
        """Per-centre energies of sums over neighbours."""
        radials = jnp.stack(sums) / (self.avg_num_neighbors * len(sums)) ** 0.5
        # Computed for every species of the centre; that of the centre is selected at the end.
        density = jnp.einsum("qn,sqc->scn", radials, self.mix)
        energy = 0.5 * self.pair @ radials + self._embedding(density)
        return of_center_species(energy, center_species, self.allowed_species, self.num_species)

    def _embedding(self, x: Float[Array, "species densities n"]) -> Float[Array, "species n"]:
        """A network per species, less its value at zero density."""
        # A column of zeros is added to the batch, so that each array of the network is read once.
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 1)))
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            gain = 1.0 if layer == 0 else 2.0**0.5
            weight = weight * (gain / x.shape[1] ** 0.5)
            x = jax.nn.silu(jnp.einsum("sio,sin->son", weight, x) + 0.3 * bias[..., None])
        energy = jnp.einsum("sin,si->sn", x, self.readout / x.shape[1] ** 0.5)
        return energy[:, :-1] - energy[:, -1:]


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
    return sums_expert("embedded_atom", network, config)
