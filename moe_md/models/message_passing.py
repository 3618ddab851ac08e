"""Message passing on rows of centres: jax-md's NequIP.

Rows are the nodes of a graph and real slots its edges, from neighbour to
centre. A neighbour without a row sends what its species alone determines: one
node per species without neighbours, a *ghost*, stands for all of them. The
energy of a centre is counted from that of its ghost, an isolated atom.

After t layers a row is right if every row within t - 1 neighbours of it was
given, so L layers need the rows within L - 1 neighbours of a centre.

Source: Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164, as
implemented in `jax_md.nn.nequip`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jax import Array

from moe_md import lazy_jax_md as jax_md
from moe_md.models import angular
from moe_md.neighborhood import Neighborhood


def row_graph(rows: Neighborhood, num_species: int, cutoff: float, num_layers: int) -> jraph.GraphsTuple:
    """Rows as one graph per node, so that a model's energies per graph are per row.

    Args:
        rows: `n` rows of `K` slots.
        num_species: number of species.
        cutoff: Å.
        num_layers: of the model. One layer reads the species of neighbours
            alone, so `neighbor` is not looked at.

    Returns:
        `n + num_species` nodes (one-hot species; the ghosts come last) and
        `n K` edges (displacements from centre to neighbour). A slot that is
        masked or beyond the cutoff is an edge of twice the cutoff, on which
        the model's radial functions are exactly zero.
    """
    n, slots = rows.mask.shape
    real = rows.mask & (angular.safe_displacement(rows.displacement, rows.mask)[1] < cutoff)
    far = jnp.asarray([2.0 * cutoff, 0.0, 0.0], rows.displacement.dtype)
    has_row = real & (rows.neighbor >= 0) & (rows.neighbor < n) & (num_layers > 1)
    ghost = n + jnp.where(real, rows.neighbor_species, 0)
    species = jnp.concatenate([rows.center_species, jnp.arange(num_species, dtype=rows.center_species.dtype)])
    return jraph.GraphsTuple(
        nodes=jax.nn.one_hot(species, num_species, dtype=rows.displacement.dtype),
        edges=jnp.where(real[..., None], rows.displacement, far).reshape(-1, 3),
        senders=jnp.where(has_row, rows.neighbor, ghost).reshape(-1),
        receivers=jnp.repeat(jnp.arange(n), slots),
        globals=None,
        n_node=jnp.ones(n + num_species, jnp.int32),
        n_edge=jnp.concatenate([jnp.full(n, slots), jnp.zeros(num_species, int)]),
    )


class NequIPNetwork(nn.Module):
    """Rows of centres to per-centre energies, before scale and shift."""

    num_species: int
    cutoff: float
    l_max: int
    num_layers: int
    hidden_irreps: str
    num_bessels: int
    radial_width: int
    radial_depth: int
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, rows: Neighborhood) -> Array:
        model = jax_md.nequip.NequIPEnergyModel(
            graph_net_steps=self.num_layers,
            use_sc=True,
            nonlinearities={"e": "raw_swish", "o": "tanh"},
            n_elements=self.num_species,
            hidden_irreps=self.hidden_irreps,
            sh_irreps=" + ".join(f"1x{l}{'eo'[l % 2]}" for l in range(self.l_max + 1)),
            num_basis=self.num_bessels,
            r_max=self.cutoff,
            radial_net_n_hidden=self.radial_width,
            radial_net_n_layers=self.radial_depth,
            n_neighbors=self.avg_num_neighbors,
            name="nequip",
        )
        energies = model(row_graph(rows, self.num_species, self.cutoff, self.num_layers))[:, 0]
        n = rows.mask.shape[0]
        return energies[:n] - energies[n + rows.center_species]
