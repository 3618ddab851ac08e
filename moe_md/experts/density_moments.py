"""Density moments, the cheapest expert with angles: sums over neighbours without parameters.

With x = r / cutoff, u = |x|^2 and v = min(u, 1), for each block b of neighbours

    g_q(u)  = (1 - v)^p T_q(1 - 2v)                 T_q Chebyshev polynomials
    A_b,qlm = sum_j c_b,s(j) g_q(u_ij) S_lm(x_ij)   S_lm real solid harmonics, q < num_radial[l]
    P       = [A_b,q00; sum_m A_b,qlm A_b',q'lm for l > 0]
    E_i     = scale [N(P) + w P - N(0)] + shift

A block is a species of neighbours, or a learned mixture of species. Everything else
that is learned belongs to the centre. A neighbour costs multiplications and additions
only, no square root, no sine and no division.

Source: moments as in Shapeev, Multiscale Model. Simul. 14, 1153 (2016), combined to the power
spectrum of Bartók, Kondor, Csányi, PRB 87, 184115 (2013); mixtures of species as in Willatt,
Musil, Ceriotti, PCCP 20, 29661 (2018).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.checks import check_value
from moe_md.experts import angular
from moe_md.experts.arguments import (
    MAX_ORDER,
    check_integer,
    check_species,
    check_widths,
    checked_pair_cutoffs,
)
from moe_md.experts.base import Expert, register_expert
from moe_md.experts.mlp import unit_uniform
from moe_md.experts.neighbor_sums import of_center_species, sum_over_neighbors
from moe_md.experts.network import sums_expert
from moe_md.experts.radial import pair_cutoff, radial_polynomials
from moe_md.neighbors.components import RowComponents

MAX_RADIAL = 16  # radial functions of one l; more are too similar to tell apart in single precision


class DensityMomentsNetwork(nn.Module):
    """RowComponents of centres to per-centre energies, before scale and shift."""

    allowed_species: Sequence[int]  # species indices that have weights; other neighbours are ignored
    num_species: int
    cutoff: float
    num_radial: Sequence[int]
    hidden: Sequence[int]
    cutoff_power: int
    num_species_mixtures: int | None
    pair_cutoffs: Sequence[Sequence[float]] | None

    def setup(self) -> None:
        """Parameters; first layer, linear term and readout belong to the centre's species."""
        n_species, n_inputs = len(self.allowed_species), self.num_inputs
        if self.num_species_mixtures is not None and n_species > 1:
            shape = (self.num_species_mixtures, n_species)
            self.species_mixing = self.param("species_mixing", unit_uniform, shape)
        widths = (n_inputs, *self.hidden)
        self.weights = [
            self.param(
                f"weight_{layer}", unit_uniform, (*((n_species,) if layer == 0 else ()), width, before)
            )
            for layer, (before, width) in enumerate(zip(widths, self.hidden))
        ]
        self.biases = [
            self.param(f"bias_{layer}", unit_uniform, (*((n_species,) if layer == 0 else ()), width))
            for layer, width in enumerate(self.hidden)
        ]
        self.readout = self.param("readout", unit_uniform, (n_species, widths[-1]))
        self.linear = self.param("linear", nn.initializers.zeros, (n_species, n_inputs))
        # Of the training data.
        self.input_mean = self.variable("inputs", "mean", jnp.zeros, n_inputs)
        self.input_scale = self.variable("inputs", "scale", jnp.ones, n_inputs)

    @property
    def num_blocks(self) -> int:
        """Blocks of neighbours that have sums of their own."""
        mixtures, n_species = self.num_species_mixtures, len(self.allowed_species)
        return n_species if mixtures is None or n_species == 1 else mixtures

    @property
    def num_inputs(self) -> int:
        """Inputs of the network of a centre."""
        first, *others = (self.num_blocks * q for q in self.num_radial)
        return first + sum(q * (q + 1) // 2 for q in others)

    def __call__(self, rows: RowComponents) -> Float[Array, " n"]:
        """Per-centre energies of rows."""
        return self.energies(self.sums(rows), rows.center_species)

    def sums(self, rows: RowComponents) -> tuple[Float[Array, " n"], ...]:
        """A, ordered by l, block, q and m; neighbours are of allowed species."""
        inverse = 1.0 / pair_cutoff(rows, self.cutoff, self.pair_cutoffs)
        x, y, z = (component * inverse for component in rows.displacement)
        squared = x * x + y * y + z * z
        radial = radial_polynomials(squared, max(self.num_radial), self.cutoff_power)
        harmonics = angular.solid_harmonics(len(self.num_radial) - 1, x, y, z, squared)
        blocks = [[factor * g for g in radial] for factor in self._block_factors(rows)]
        return sum_over_neighbors(
            tuple(
                block[q] * component if l else block[q]
                for l, num_radial in enumerate(self.num_radial)
                for block in blocks
                for q in range(num_radial)
                for component in harmonics[l]
            )
        )

    def _block_factors(self, rows: RowComponents) -> Sequence[Float[Array, "n K"] | float]:
        """c of every block: factors of the neighbours."""
        if len(self.allowed_species) == 1:
            return [1.0]
        dtype = rows.displacement[0].dtype
        is_species = [(rows.neighbor_species == s).astype(dtype) for s in self.allowed_species]
        if self.num_species_mixtures is None:
            return is_species
        return [sum(c * each for c, each in zip(row, is_species)) for row in self.species_mixing]

    def energies(
        self, sums: Sequence[Float[Array, " n"]], center_species: Int[Array | np.ndarray, " n"]
    ) -> Float[Array, " n"]:
        """Per-centre energies of sums over neighbours."""
        products, (full, share) = self._products(sums), self._full_products()
        mean = self.input_mean.value[full][:, None]
        factor = (jnp.asarray(share, mean.dtype) / self.input_scale.value[full])[:, None]
        # The last column belongs to a centre without neighbours.
        products = jnp.pad(products, ((0, 0), (0, 1)))
        # Computed for every species of the centre; that of the centre is selected.
        energies = self._networks(factor * (products - mean), full)
        energies = energies[:, :-1] - energies[:, -1:]
        return of_center_species(energies, center_species, self.allowed_species, self.num_species)

    def inputs(self, sums: Sequence[Float[Array, " n"]]) -> Float[Array, "inputs n"]:
        """The invariants P."""
        full, _ = self._full_products()
        _, first = np.unique(full, return_index=True)
        return self._products(sums)[first]

    def _products(self, sums: Sequence[Float[Array, " n"]]) -> Float[Array, "products n"]:
        """P, and for l > 0 both A_i A_j and A_j A_i: without an index for each pair it is faster."""
        counts = [self.num_blocks * num_radial for num_radial in self.num_radial]
        blocks = jax.lax.split(jnp.stack(sums), [(2 * l + 1) * count for l, count in enumerate(counts)])
        products = [blocks[0]]
        for l, (count, block) in enumerate(zip(counts, blocks)):
            if l > 0:
                a = block.reshape(count, 2 * l + 1, -1)
                products.append(jnp.sum(a[:, None] * a[None], axis=2).reshape(count**2, -1))
        return jnp.concatenate(products)

    def _full_products(self) -> tuple[Int[np.ndarray, " products"], Float[np.ndarray, " products"]]:
        """Index in P of each of `_products`, and its share of the weight: half where P is there twice."""
        first, *others = (self.num_blocks * num_radial for num_radial in self.num_radial)
        index, share = [np.arange(first)], [np.ones(first)]
        for count in others:
            table = np.zeros((count, count), int)
            table[np.triu_indices(count)] = first + np.arange(count * (count + 1) // 2)
            first += count * (count + 1) // 2
            index.append(np.maximum(table, table.T).ravel())
            share.append(np.where(np.eye(count) == 1, 1.0, 0.5).ravel())
        return np.concatenate(index), np.concatenate(share)

    def _networks(
        self, inputs: Float[Array, "products n"], full: Int[np.ndarray, " products"]
    ) -> Float[Array, "species n"]:
        """N(P) + w P by the parameters of each allowed species; P as `_products`, with mean and scale."""
        x = jnp.broadcast_to(inputs, (len(self.allowed_species), *inputs.shape))
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            gain = (1.0 if layer == 0 else 2.0**0.5) / weight.shape[-1] ** 0.5
            weight = weight[..., full] if layer == 0 else weight
            weight, bias = (jnp.broadcast_to(p, (len(x), *p.shape[-k:])) for p, k in ((weight, 2), (bias, 1)))
            form = "soi,sin->sno" if layer == 0 else "soi,sni->sno"
            x = jax.nn.silu(jnp.einsum(form, gain * weight, x) + 0.3 * bias[:, None])
        energies = jnp.einsum("si,sni->sn", self.readout / self.readout.shape[1] ** 0.5, x)
        return energies + (self.linear[:, full] / self.linear.shape[1] ** 0.5) @ inputs


@register_expert
def density_moments(
    species: Sequence[str],
    cutoff: float,
    *,
    num_radial: Sequence[int] = (8, 6, 6),
    hidden: Sequence[int] = (64, 64),
    cutoff_power: int = 4,
    num_species_mixtures: int | None = None,
    pair_cutoffs: Sequence[Sequence[float]] | None = None,
    zbl: bool = False,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """The cheapest learned expert with angles, several times cheaper than `power_spectrum`.

    It fits one species nearly as well as a power spectrum does, and alloys of several species
    less well. For these take few mixtures of species and fewer radial functions, such as 2
    and (8, 4, 4): the cost grows with the square of their product. Set `zbl` where data have
    atoms that come close to each other.

    Its energy has `cutoff_power` - 1 continuous derivatives at the cutoff.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        num_radial: radial functions for l = 0, 1, ...; more of them cost and describe more.
        hidden: widths of the network of a centre.
        cutoff_power: power of 1 - (r / cutoff)^2, at least 4.
        num_species_mixtures: learned mixtures of neighbour species that have moments of their own. By
            default each species has; with four or more species a few mixtures are cheaper.
        pair_cutoffs: Å, `[n_species][n_species]` by species of centre and neighbour, at
            most `cutoff`; default `cutoff` for all.
        zbl: add the screened repulsion of nuclei at short distances.
        allowed_species: species it may meet, as centre or neighbour; default all.
            Neighbours of other species are ignored.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`.

    Raises:
        ValueError: an argument is out of range.

    >>> expert = density_moments(("Pt",), 5.0, num_radial=(4, 2))
    >>> expert.init(jax.random.key(0))["network"]["weight_0"].shape
    (1, 64, 7)
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    check_num_radial(num_radial)
    check_widths("hidden", hidden)
    check_integer("cutoff_power", cutoff_power, 4, 20)
    if num_species_mixtures is not None:
        check_integer("num_species_mixtures", num_species_mixtures, 1)
    check_value("zbl", zbl, bool)
    if pair_cutoffs is not None:
        pair_cutoffs = checked_pair_cutoffs(pair_cutoffs, len(species), float(cutoff))
    allowed = tuple(species) if allowed_species is None else tuple(allowed_species)
    network = DensityMomentsNetwork(
        allowed_species=tuple(tuple(species).index(s) for s in allowed),
        num_species=len(species),
        cutoff=float(cutoff),
        num_radial=tuple(num_radial),
        hidden=tuple(hidden),
        cutoff_power=cutoff_power,
        num_species_mixtures=num_species_mixtures,
        pair_cutoffs=pair_cutoffs,
    )
    return sums_expert("density_moments", network, config)


def check_num_radial(num_radial) -> None:
    """Raise `ValueError` unless these are numbers of radial functions per l."""
    if not isinstance(num_radial, (tuple, list)) or not 1 <= len(num_radial) <= MAX_ORDER + 1:
        raise ValueError(
            f"num_radial must be a tuple of one to {MAX_ORDER + 1} numbers, one for each l, "
            f"got {num_radial!r:.80}."
        )
    for number in num_radial:
        check_integer("num_radial", number, 1, MAX_RADIAL)
