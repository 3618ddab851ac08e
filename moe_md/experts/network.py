"""Experts from networks of flax: scale and shift per species, repulsion of nuclei by option."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from moe_md.experts.base import Expert, Params, cast, stored_config
from moe_md.experts.neighbor_sums import BEYOND, NeighborSums, energies_of, row_components
from moe_md.experts.radial import pair_cutoff
from moe_md.experts.zbl import zbl_energies, zbl_sums
from moe_md.neighbors.components import RowComponents, components_of_rows
from moe_md.neighbors.rows import Neighborhood

ROW = Neighborhood(  # one centre with one neighbour, to make parameters with
    displacement=np.ones((1, 1, 3), np.float32),
    mask=np.ones((1, 1), bool),
    center_species=np.zeros(1, np.int32),
    neighbor_species=np.zeros((1, 1), np.int32),
    neighbor=np.zeros((1, 1), np.int32),
)


def network_expert(name: str, network: nn.Module, config: dict) -> Expert:
    """An expert from a network on rows, with scale and shift per species.

    Args:
        name: of the builder.
        network: a module that maps a `Neighborhood` to `[n]` energies.
        config: the builder's arguments; `species`, `cutoff`, `allowed_species`, and
            optionally `pair_cutoffs` and `zbl`, are used.

    Raises:
        ValueError: `zbl` is given for species that are no chemical symbols.
    """
    cutoff, numbers = float(config["cutoff"]), _numbers_of_zbl(config)

    def atom_energies(params: Params, rows: Neighborhood) -> Float[Array, " n"]:
        p = cast(params, rows.displacement.dtype)
        energies = network.apply({"params": p["network"]}, rows)
        energies = p["scale"][rows.center_species] * energies + p["shift"][rows.center_species]
        if numbers is not None:
            energies = energies + zbl_energies(
                rows, numbers, pair_cutoff(rows, cutoff, config.get("pair_cutoffs"))
            )
        return energies

    return _expert(name, config, _init(network, ROW, config), atom_energies)


def sums_expert(name: str, network: nn.Module, config: dict) -> Expert:
    """An expert from a network of sums over neighbours, with scale and shift per species.

    Args:
        name: of the builder.
        network: a module with the methods `sums`, of `RowComponents` to `[n]` arrays, `energies`, of
            these and the centres' species to `[n]`, and, where data set the mean and the scale of
            its inputs (its collection "inputs"), `inputs`, of the sums to `[inputs, n]`. Called
            with `RowComponents` it returns energies.
        config: as for `network_expert`.

    Raises:
        ValueError: as `network_expert`.
    """
    cutoff, numbers = float(config["cutoff"]), _numbers_of_zbl(config)

    def sums(params: Params, rows: RowComponents) -> tuple[Float[Array, " n"], ...]:
        p = cast(params, rows.displacement[0].dtype)
        found: Any = network.apply(_variables(p), rows, method="sums")
        if numbers is None:
            return found
        repulsion = zbl_sums(rows, numbers, pair_cutoff(rows, cutoff, config.get("pair_cutoffs")))
        return (*found, repulsion)

    def energies(
        params: Params, sums: Sequence[Float[Array, " n"]], center_species: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        p = cast(params, sums[0].dtype)
        sums, repulsion = (sums, 0.0) if numbers is None else (sums[:-1], sums[-1])
        found: Any = network.apply(_variables(p), sums, center_species, method="energies")
        return p["scale"][center_species] * found + p["shift"][center_species] + repulsion

    functions, species = NeighborSums(sums, energies), tuple(config["species"])

    def atom_energies(params: Params, rows: Neighborhood) -> Float[Array, " n"]:
        components = row_components(rows, species, _allowed_species(config), cutoff)
        return energies_of(functions, params, components)

    def inputs(params: Params, rows: Neighborhood) -> Float[Array, "n inputs"]:
        found = sums(params, row_components(rows, species, _allowed_species(config), cutoff))
        found = found if numbers is None else found[:-1]
        of_network: Any = network.apply(_variables(params), found, method="inputs")
        return of_network.T

    rows = components_of_rows(ROW, BEYOND * cutoff)
    expert = _expert(name, config, _init(network, rows, config), atom_energies)
    return expert._replace(neighbor_sums=functions, inputs=inputs if hasattr(network, "inputs") else None)


def _variables(params: Params) -> dict:
    """Collections of a flax module."""
    return {"params": params["network"], **({"inputs": params["inputs"]} if "inputs" in params else {})}


def _init(network: nn.Module, neighbors: Neighborhood | RowComponents, config: dict) -> Callable:
    """`(key) -> params`, compiled whole, as the network would otherwise run operation by operation."""
    n_species = len(config["species"])

    @jax.jit
    def init(key: PRNGKeyArray) -> Params:
        found = network.init(key, jax.tree.map(jnp.asarray, neighbors))
        return {
            "network": found.pop("params"),
            **found,
            "scale": jnp.ones(n_species),
            "shift": jnp.zeros(n_species),
        }

    return init


def _expert(name: str, config: dict, init: Callable, atom_energies: Callable) -> Expert:
    species = tuple(config["species"])
    stored = stored_config(name, config)
    return Expert(init, atom_energies, float(config["cutoff"]), species, _allowed_species(config), stored)


def _allowed_species(config: dict) -> tuple[str, ...]:
    allowed = config["allowed_species"]
    return tuple(config["species"] if allowed is None else allowed)


def _numbers_of_zbl(config: dict) -> list[int] | None:
    """Atomic number of each species; None where there is no repulsion of nuclei."""
    if not config.get("zbl"):
        return None
    species = tuple(config["species"])
    numbers = [atomic_numbers.get(symbol, 0) for symbol in species]
    if min(numbers) < 1:
        raise ValueError(f"species must be chemical symbols where zbl = True, got {species}.")
    return numbers
