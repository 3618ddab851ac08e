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
from jaxtyping import Float

from moe_md.checks import check_value
from moe_md.experts import angular
from moe_md.experts.arguments import (
    MAX_DEPTH,
    MAX_ORDER,
    check_integer,
    check_power,
    check_species,
    check_widths,
    checked_avg_num_neighbors,
    checked_pair_cutoffs,
)
from moe_md.experts.base import Expert, register_expert
from moe_md.experts.mlp import NONLINEARITIES, ScalarMLP, unit_uniform
from moe_md.experts.network import network_expert
from moe_md.experts.radial import pair_cutoff, radial_basis
from moe_md.neighbors.rows import Neighborhood


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
    """The tensor product with the environment of a centre, as a matrix."""

    left: tuple[angular.Irrep, ...]
    right: tuple[angular.Irrep, ...]
    out: tuple[angular.Irrep, ...]
    path_channel_coupling: bool

    @nn.compact
    def __call__(self, environment: Float[Array, "n right C"]) -> Float[Array, "n left out C"]:
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
    avg_num_neighbors: float | tuple[float, ...]  # one number, or one per species of the centre
    path_channel_coupling: bool
    nonlinearity: str = "silu"
    pair_cutoffs: tuple[tuple[float, ...], ...] | None = None  # Å, by species of centre and neighbour

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Float[Array, " n"]:
        scalars_n, channels, orders = self.num_scalar_features, self.num_tensor_features, self.l_max + 1
        vector, distance = angular.safe_displacement(rows.displacement, rows.mask)
        cutoff = pair_cutoff(rows, self.cutoff, self.pair_cutoffs)
        mask = rows.mask & (distance < cutoff)
        neighbors = jnp.asarray(self.avg_num_neighbors, distance.dtype)
        if neighbors.ndim:
            neighbors = neighbors[rows.center_species]
        per_edge = jnp.reshape(neighbors**-0.5, (-1, 1, 1))  # factor of sums over edges; [n or 1, 1, 1]
        mlp = partial(ScalarMLP, nonlinearity=NONLINEARITIES[self.nonlinearity])
        harmonics = angular.spherical_harmonics(self.l_max, vector, axis=-2)  # [n, (l_max + 1)^2, K]

        # Two-body embedding. The networks have no bias, so masked slots, whose
        # radial basis is zero, stay exactly zero in every feature.
        basis = radial_basis(distance, mask, cutoff, self.num_bessels, self.polynomial_cutoff_p)
        edge = self._species_features(rows) * ScalarMLP((), scalars_n, name="basis_linear")(basis)
        edge = mlp(self.scalar_embed_mlp, scalars_n, name="scalar_embed")(edge)
        split = partial(_by_order, orders=orders)

        tensor_weights = split(ScalarMLP((), channels * orders, name="tensor_embed")(edge))  # w of V_0
        projection = ScalarMLP((), scalars_n + channels * orders, name="first_projection")(edge)
        features, weights = [projection[..., :scalars_n]], split(projection[..., scalars_n:])

        irreps = angular.harmonic_irreps(self.l_max)
        blocks = list(enumerate(angular.slices(irreps)))
        track = tensor_track(self.l_max, self.num_layers, self.parity)
        chain = None  # M_1 ... M_t, [n, (l_max + 1)^2, dim(track[t]), C]
        for layer in range(self.num_layers):
            # Sums over neighbours, and products with them, are matrix products per centre and l.
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

    @nn.nowrap
    def _species_features(self, rows: Neighborhood) -> Array:
        """Embedded species of centre and neighbour: `[n, K, num_scalar_features]`."""
        embed, shape = nn.initializers.normal(1.0), (self.num_species, self.num_scalar_features // 2)
        of_center = self.param("center_embed", embed, shape)[rows.center_species]
        of_neighbor = self.param("neighbor_embed", embed, shape)[rows.neighbor_species]
        return jnp.concatenate(
            [jnp.broadcast_to(of_center[:, None], of_neighbor.shape), of_neighbor], axis=-1
        )


def _by_order(x: Array, orders: int) -> Array:
    """`[..., channels * orders]` to `[..., orders, channels]`; channel-major input, as in the reference."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], -1, orders), -1, -2)


@register_expert
def allegro(
    species: Sequence[str],
    cutoff: float,
    *,
    l_max: int = 2,
    parity: bool = True,
    num_layers: int = 2,
    num_scalar_features: int = 64,
    num_tensor_features: int = 32,
    num_bessels: int = 8,
    polynomial_cutoff_p: float = 6.0,
    scalar_embed_mlp: Sequence[int] = (64,),
    allegro_mlp: Sequence[int] = (64,),
    readout_mlp: Sequence[int] = (32,),
    avg_num_neighbors: float | Sequence[float] = 40.0,
    path_channel_coupling: bool = True,
    nonlinearity: str = "silu",
    pair_cutoffs: Sequence[Sequence[float]] | None = None,
    zbl: bool = False,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """Allegro, as in `nequip-allegro` 0.8.3; usually the expensive expert.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        l_max: highest order of the spherical harmonics.
        parity: allow odd scalars, even vectors and so on in the tensor track.
        num_layers: Allegro layers, at least 1.
        num_scalar_features: scalars per edge, even.
        num_tensor_features: channels of the tensor track.
        num_bessels: radial functions.
        polynomial_cutoff_p: power of the envelope.
        scalar_embed_mlp, allegro_mlp, readout_mlp: hidden widths.
        avg_num_neighbors: normalises sums over neighbours; one number, or one
            per species of the centre.
        path_channel_coupling: a weight per path and channel, or per path.
        nonlinearity: `"silu"`, `"mish"`, `"gelu"` or `"tanh"`, of every network.
        pair_cutoffs: Å, `[n_species][n_species]` by centre and neighbour, none
            above `cutoff`; default `cutoff` for all.
        zbl: add the screened repulsion of nuclei
            (`experts.zbl.zbl_energies`), after scale and shift.
        allowed_species: species it may meet; default all.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`; scale and
        shift are `[n_species]`, eV.

    Raises:
        ValueError: an argument is out of range.

    >>> import jax
    >>> expert = allegro(("Pt",), 4.0, num_layers=1, num_scalar_features=8, num_tensor_features=4)
    >>> params = expert.init(jax.random.key(0))
    >>> params["shift"].shape
    (1,)
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    check_integer("num_layers", num_layers, 1, MAX_DEPTH)
    check_integer("l_max", l_max, 0, MAX_ORDER)
    check_integer("num_tensor_features", num_tensor_features, 1)
    check_integer("num_bessels", num_bessels, 1)
    check_power(polynomial_cutoff_p)
    for name in ("scalar_embed_mlp", "allegro_mlp", "readout_mlp"):
        check_widths(name, config[name])
    for name in ("parity", "path_channel_coupling", "zbl"):
        check_value(name, config[name], bool)
    check_value("nonlinearity", nonlinearity, str)
    check_integer("num_scalar_features", num_scalar_features, 2)
    if num_scalar_features % 2 or num_scalar_features < 2:
        raise ValueError(f"num_scalar_features must be even and positive, got {num_scalar_features}.")
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity must be one of {tuple(NONLINEARITIES)}, got {nonlinearity!r}.")
    if pair_cutoffs is not None:
        pair_cutoffs = checked_pair_cutoffs(pair_cutoffs, len(species), cutoff)
        config["pair_cutoffs"] = [list(row) for row in pair_cutoffs]
    network = AllegroNetwork(
        num_species=len(species),
        cutoff=float(cutoff),
        l_max=l_max,
        parity=parity,
        num_layers=num_layers,
        num_scalar_features=num_scalar_features,
        num_tensor_features=num_tensor_features,
        num_bessels=num_bessels,
        polynomial_cutoff_p=polynomial_cutoff_p,
        scalar_embed_mlp=tuple(scalar_embed_mlp),
        allegro_mlp=tuple(allegro_mlp),
        readout_mlp=tuple(readout_mlp),
        avg_num_neighbors=checked_avg_num_neighbors(avg_num_neighbors, len(species)),
        path_channel_coupling=path_channel_coupling,
        nonlinearity=nonlinearity,
        pair_cutoffs=pair_cutoffs,
    )
    return network_expert("allegro", network, config)._replace(pack_neighbors=True)
