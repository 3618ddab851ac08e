"""Message passing on rows of centres: jax-md's NequIP.

Rows are the nodes of a graph and real slots its edges, from neighbour to
centre. The message of a neighbour without a row depends on its species alone: one
node per species, without neighbours, represents all of them. The energy of a centre
is taken relative to that of this node, an isolated atom.

After t layers a row is right if every row within t - 1 neighbours of it was
given, so L layers need the rows within L - 1 neighbours of a centre.

Source: Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164, as
implemented in `jax_md.nn.nequip`.
"""

from collections.abc import Sequence

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jax import Array
from jaxtyping import Float

from moe_md import lazy_jax_md as jax_md
from moe_md.checks import check_value
from moe_md.experts import angular
from moe_md.experts.arguments import (
    MAX_DEPTH,
    MAX_ORDER,
    check_integer,
    check_species,
    checked_avg_num_neighbors,
)
from moe_md.experts.base import Expert, register_expert
from moe_md.experts.network import network_expert
from moe_md.neighbors.rows import Neighborhood


def row_graph(rows: Neighborhood, num_species: int, cutoff: float, num_layers: int) -> jraph.GraphsTuple:
    """Rows as one graph per node, so that a model's energies per graph are per row.

    Args:
        rows: `n` rows of `K` slots.
        num_species: number of species.
        cutoff: Å.
        num_layers: of the model. One layer reads the species of neighbours
            alone, so `neighbor` is not used.

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
    def __call__(self, rows: Neighborhood) -> Float[Array, " n"]:
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


@register_expert
def nequip(
    species: Sequence[str],
    cutoff: float,
    *,
    l_max: int = 2,
    num_layers: int = 2,
    hidden_irreps: str = "32x0e + 16x1o + 8x2e",
    num_bessels: int = 8,
    radial_width: int = 64,
    radial_depth: int = 2,
    avg_num_neighbors: float = 40.0,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """An expert that passes messages: jax-md's NequIP, `jax_md.nn.nequip`.

    Its `num_hops` is `num_layers`: the energy of a centre depends on atoms within
    `num_layers` cutoffs, and needs the rows of atoms within `num_layers` - 1
    neighbours. The energy is relative to that of an isolated atom.

    jax-md's radial functions have two continuous derivatives at the cutoff,
    and one at 0.5 Å inside it, where their switch sets in: forces are
    continuous there, and their derivatives jump. The dtype follows the rows,
    float64 to its last digits, except that jax-md holds the cutoff in float32:
    unless it is a multiple of 1/16 Å, the radial functions have a step of 1e-7
    of their value where the switch sets in.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å, above 0.5.
        l_max: highest order of the spherical harmonics.
        num_layers: rounds of messages, at least 1.
        hidden_irreps: features of a row, as e3nn writes them; two or more
            even scalars.
        num_bessels: radial functions.
        radial_width, radial_depth: hidden layers of the network that scales
            the messages by distance.
        avg_num_neighbors: divides sums over neighbours (jax-md divides by the
            number, not by its root).
        allowed_species: species it may meet; default all.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`;
        `network["nequip"]` is the parameter tree of jax-md's model.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164.

    >>> nequip(("Pt",), 4.0, num_layers=3, hidden_irreps="4x0e + 2x1o").num_hops
    3
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    check_integer("l_max", l_max, 0, MAX_ORDER)
    for name in ("num_layers", "num_bessels", "radial_width", "radial_depth"):
        check_integer(name, config[name], 1)
    check_integer("num_layers", num_layers, 1, MAX_DEPTH)
    check_integer("radial_depth", radial_depth, 1, MAX_DEPTH)
    check_value("avg_num_neighbors", avg_num_neighbors, float)
    if not cutoff > 0.5:
        raise ValueError(f"cutoff must be above 0.5 Å, where jax-md's switch is that wide, got {cutoff}.")
    network = NequIPNetwork(
        num_species=len(species),
        cutoff=float(cutoff),
        l_max=l_max,
        num_layers=num_layers,
        hidden_irreps=_checked_irreps(hidden_irreps),
        num_bessels=num_bessels,
        radial_width=radial_width,
        radial_depth=radial_depth,
        avg_num_neighbors=checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return network_expert("nequip", network, config)._replace(num_hops=num_layers)


def _checked_irreps(value: str) -> str:
    requirement = (
        f"hidden_irreps must be irreps with two or more even scalars, like '8x0e + 4x1o', got {value!r:.80}."
    )
    if not isinstance(value, str):
        raise ValueError(requirement)
    try:
        irreps = e3nn.Irreps(value).regroup()
    except (TypeError, ValueError):
        raise ValueError(requirement) from None
    if irreps.count((0, 1)) < 2:  # 0e
        raise ValueError(requirement)
    return str(irreps)
