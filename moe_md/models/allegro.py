"""Allegro: strictly local equivariant network, on rows of centres.

Parameter for parameter the model of `nequip-allegro` 0.8.3 (Bessel two-body
embedding): scalars per edge, a tensor track of weighted spherical harmonics,
and per layer the product of an edge's tensors with the environment of its
centre.

The environment is one tensor per centre, so its product with the
Clebsch-Gordan coefficients is a matrix per centre and channel, M_t for layer t,
the same for all edges:

    V_t,k = V_0,k M_1 ... M_t,        V_0,k = w_k Y(r_k)

Only the scalars of V_t,k are ever used. So the matrices are multiplied per
centre, and an edge costs one product with the scalar column of M_1 ... M_t: the
tensor features of edges are never formed.

Source: Musaelian et al., Nat. Commun. 14, 579 (2023), arXiv:2204.05249; Tan et
al., arXiv:2504.16068.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from moe_md.models import angular
from moe_md.models.mlp import NONLINEARITIES, ScalarMLP, unit_uniform
from moe_md.models.radial import pair_cutoff, radial_basis
from moe_md.neighborhood import Neighborhood


def tensor_track(l_max: int, num_layers: int, parity: bool) -> list[tuple[angular.Irrep, ...]]:
    """Irreps of the tensor features before and after each layer.

    Irreps that no product can reach, or that reach no scalar at the end, are
    left out.
    """
    harmonics = angular.harmonic_irreps(l_max)
    allowed = tuple((l, p) for l in range(l_max + 1) for p in (1, -1)) if parity else harmonics
    track = [harmonics]
    for layer in range(num_layers):
        wanted = ((0, 1),) if layer == num_layers - 1 else allowed
        reachable = tuple(
            o for o in wanted if any(angular.couples(a, b, o) for a in track[-1] for b in harmonics)
        )
        track.append(reachable)
    for layer in range(num_layers - 1, -1, -1):
        track[layer] = tuple(
            a
            for a in track[layer]
            if any(angular.couples(a, b, o) for b in harmonics for o in track[layer + 1])
        )
    return track


class EnvironmentMatrix(nn.Module):
    """The tensor product with an environment, as a matrix."""

    left: tuple[angular.Irrep, ...]
    right: tuple[angular.Irrep, ...]
    out: tuple[angular.Irrep, ...]
    path_channel_coupling: bool

    @nn.compact
    def __call__(self, environment: Array) -> Array:
        """`[n, dim(right), C]` to `[n, dim(left), dim(out), C]`."""
        channels = environment.shape[-1]
        coupling = jnp.asarray(angular.coupling_tensor(self.left, self.right, self.out), environment.dtype)
        shape = (coupling.shape[0], channels if self.path_channel_coupling else 1)
        weights = jnp.broadcast_to(self.param("path_weights", unit_uniform, shape), (shape[0], channels))
        weighted = jnp.einsum("pijo,pc->ijoc", coupling, weights)
        return jnp.einsum("ijoc,njc->nioc", weighted, environment)


class AllegroNetwork(nn.Module):
    """Rows of centres to per-centre energies, before scale and shift."""

    num_species: int
    cutoff: float
    l_max: int
    parity: bool
    num_layers: int
    num_scalar_features: int
    num_tensor_features: int
    num_bessels: int
    polynomial_cutoff_p: float
    scalar_embed_mlp: Sequence[int]
    allegro_mlp: Sequence[int]
    readout_mlp: Sequence[int]
    avg_num_neighbors: float | tuple[float, ...]  # of all centres, or of each species
    path_channel_coupling: bool
    nonlinearity: str = "silu"
    pair_cutoffs: tuple[tuple[float, ...], ...] | None = None  # of centre and neighbour species

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Array:
        scalars_n, channels, orders = self.num_scalar_features, self.num_tensor_features, self.l_max + 1
        vector, distance = angular.safe_displacement(rows.displacement, rows.mask)
        cutoff = pair_cutoff(rows, self.cutoff, self.pair_cutoffs)
        mask = rows.mask & (distance < cutoff)
        neighbors = jnp.asarray(self.avg_num_neighbors, distance.dtype)
        if neighbors.ndim:
            neighbors = neighbors[rows.center_species]
        per_edge = jnp.reshape(neighbors**-0.5, (-1, 1, 1))  # of a sum over edges; [n, 1, 1] or [1, 1, 1]
        mlp = partial(ScalarMLP, nonlinearity=NONLINEARITIES[self.nonlinearity])
        harmonics = angular.spherical_harmonics(self.l_max, vector, axis=-2)  # [n, (l_max + 1)^2, K]

        # Two-body embedding. No network here has a bias, so a masked slot,
        # whose radial basis is zero, stays exactly zero in every feature.
        basis = radial_basis(distance, mask, cutoff, self.num_bessels, self.polynomial_cutoff_p)
        half = scalars_n // 2
        embed = nn.initializers.normal(1.0)
        of_center = self.param("center_embed", embed, (self.num_species, half))[rows.center_species]
        of_neighbor = self.param("neighbor_embed", embed, (self.num_species, half))[rows.neighbor_species]
        types = jnp.concatenate(
            [jnp.broadcast_to(of_center[:, None], of_neighbor.shape), of_neighbor], axis=-1
        )
        edge = types * ScalarMLP((), scalars_n, name="basis_linear")(basis)
        edge = mlp(self.scalar_embed_mlp, scalars_n, name="scalar_embed")(edge)

        def split(x: Array) -> Array:  # one weight per channel and l, channel-major as the reference's
            return jnp.swapaxes(x.reshape(*x.shape[:-1], channels, orders), -1, -2)

        tensor_weights = split(ScalarMLP((), channels * orders, name="tensor_embed")(edge))  # w of V_0
        projection = ScalarMLP((), scalars_n + channels * orders, name="first_projection")(edge)
        features, weights = [projection[..., :scalars_n]], split(projection[..., scalars_n:])

        irreps = angular.harmonic_irreps(self.l_max)
        blocks = list(enumerate(angular.slices(irreps)))
        track = tensor_track(self.l_max, self.num_layers, self.parity)
        chain = None  # M_1 ... M_t, [n, (l_max + 1)^2, dim(track[t]), C]
        for layer in range(self.num_layers):
            # Sums over neighbours and products with them: small matrix products per centre and l.
            sums = [jnp.einsum("nmk,nkc->nmc", harmonics[:, s], weights[..., l, :]) for l, s in blocks]
            environment = jnp.concatenate(sums, axis=1) * per_edge
            matrix = EnvironmentMatrix(
                track[layer],
                irreps,
                track[layer + 1],
                self.path_channel_coupling,
                name=f"tensor_product_{layer}",
            )(environment)
            chain = matrix if layer == 0 else jnp.einsum("naic,nioc->naoc", chain, matrix)
            column = chain[:, :, 0]
            scalars = sum(
                tensor_weights[..., l, :] * jnp.einsum("nmk,nmc->nkc", harmonics[:, s], column[:, s])
                for l, s in blocks
            )
            last = layer == self.num_layers - 1
            latent = mlp(
                self.allegro_mlp, scalars_n + (0 if last else channels * orders), name=f"latent_{layer}"
            )(jnp.concatenate([*features, scalars], axis=-1))
            features.append(latent[..., :scalars_n])
            if not last:
                weights = split(latent[..., scalars_n:])

        edge_energy = mlp(self.readout_mlp, 1, name="readout")(jnp.concatenate(features, axis=-1))
        return jnp.sum(edge_energy[..., 0], axis=-1) * per_edge[..., 0, 0] * 0.5**0.5
