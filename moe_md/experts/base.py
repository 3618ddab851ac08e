"""The contract of an expert, and functions that serve every expert."""

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from moe_md.experts.radial import pair_cutoff
from moe_md.experts.zbl import zbl_energies
from moe_md.files import plain
from moe_md.neighbors.rows import Neighborhood, map_rows
from moe_md.renamed import KEYS

Params = Any
BUILDERS: dict[str, Callable] = {}  # filled by `register_expert`


class Expert(NamedTuple):
    """A potential E = sum_i E_i, a sum over rows.

    With `num_hops` 1 it is strictly local: E_i depends on row i alone, and
    `Neighborhood.neighbor` is not used. Above 1 it passes messages along
    `neighbor`, which then holds the row of each neighbour in the same
    `Neighborhood`. A number of at least `n` means that the neighbour has no row;
    its message depends on its species alone. E_i is right if the rows of all atoms
    within `num_hops` - 1 neighbours of i are given; other energies are meaningless.
    """

    init: Callable  # (key) -> params
    atom_energies: Callable  # (params, Neighborhood) -> [n] eV
    cutoff: float  # Å; the expert itself vanishes smoothly there
    species: tuple[str, ...]  # one tuple shared by all experts of a mixture
    allowed_species: tuple[str, ...]  # species it may meet, as centre or neighbour
    config: dict  # builder name and keyword arguments: what a checkpoint stores
    num_hops: int = 1  # E_i depends on the rows of atoms within num_hops - 1 neighbours of i
    pack_neighbors: bool = False  # gets rows without the neighbours of the skin, as each neighbour is costly

    def __reduce__(self) -> tuple:
        """For pickle: an expert of a registered builder is built again, from its `config`."""
        builder = BUILDERS.get(self.config.get("builder", "")) if isinstance(self.config, dict) else None
        if builder is not None:
            built = _built(builder, self.config)
            if all(_origin(a) == _origin(b) for a, b in zip(self[:2], built[:2])):
                return _rebuilt, (builder, *self[2:])
        return Expert, tuple(self)  # its functions are pickled by name

    def __copy__(self) -> "Expert":
        """Itself, as tuples are constant."""
        return self

    def __deepcopy__(self, memo: dict) -> "Expert":
        """The same functions, which compiled programs belong to."""
        return self._replace(config=copy.deepcopy(self.config, memo))


_BUILT: dict[tuple[Callable, str], Expert] = {}  # by builder and config as JSON; few in a process


def _built(builder: Callable, config: dict) -> Expert:
    """The expert of a builder, always the same one for the same arguments, so that it is compiled once."""
    key = (builder, json.dumps(config, sort_keys=True, default=plain))
    if key not in _BUILT:
        _BUILT[key] = builder(**{name: value for name, value in config.items() if name != "builder"})
    return _BUILT[key]


def _rebuilt(builder: Callable, *fields) -> Expert:
    """The expert of a pickle, from its builder and all fields but the functions."""
    config = fields[Expert._fields.index("config") - 2]
    return Expert(*_built(builder, config)[:2], *fields)


def _origin(function: Any) -> tuple:
    """Where a function is defined; equal for those of two experts of one builder."""
    function = inspect.unwrap(function)
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


class Potential(NamedTuple):
    """An expert with its parameters."""

    expert: Expert
    params: Params

    def __reduce__(self) -> tuple:
        """For pickle: parameters as numpy arrays, as jax would cast float64 where it reads them."""
        return Potential, (self.expert, jax.tree.map(np.asarray, self.params))


def potentials(experts: Sequence[Expert], params: Sequence[Params]) -> tuple[Potential, ...]:
    """Each expert with its parameters.

    Args:
        experts: the potentials' functions.
        params: one parameter tree per expert.

    Raises:
        ValueError: these are not two sequences of one length.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 6.0)
    >>> potentials([expert], [expert.init(None)])[0].expert.cutoff
    6.0
    """
    for name, value in (("experts", experts), ("params", params)):
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{name} must be a tuple, one entry per expert, got {value!r:.80}.")
    if len(experts) != len(params):
        raise ValueError(
            f"experts and params must be sequences of equal length, got {len(experts)} and {len(params)}."
        )
    return tuple(map(Potential, experts, params))


def check_two_experts(
    experts: Sequence[Expert], name: str = "experts", *, strictly_local: bool = False
) -> None:
    """Raise `ValueError` unless there are two experts.

    Args:
        experts: the expensive one first.
        name: what the message calls them.
        strictly_local: they must also pass no messages, so that rows can be compared one by one.
    """
    if len(experts) != 2:
        raise ValueError(f"{name} must be two, the expensive one first, got {len(experts)}.")
    if strictly_local and max(e.num_hops for e in experts) > 1:
        raise ValueError(
            f"{name} must not pass messages, as they are compared row by row, "
            f"got num_hops of {[e.num_hops for e in experts]}: use strictly local ones."
        )


def energies_and_partial_forces(
    expert: Expert, params: Params, rows: Neighborhood
) -> tuple[Float[Array, " n"], Float[Array, "n K 3"]]:
    """Per-atom energies and g = dE_i / d displacement of every slot.

    For an expert with `num_hops` above 1 it is g = d(sum_j E_j) / d displacement,
    summed over all rows j. Where some rows serve for their messages only, mask their
    energies and differentiate that sum instead.

    Args:
        expert: the potential.
        params: its parameters.
        rows: `n` rows of `K` slots.

    Returns:
        energies, eV, and g, eV/Å, zero on padded slots.
    """

    def total(displacement):
        energies = expert.atom_energies(params, rows._replace(displacement=displacement))
        return jnp.sum(energies), energies

    g, energies = jax.grad(total, has_aux=True)(rows.displacement)
    return energies, g


def chunked_atom_energies(expert: Expert, chunk_size: int) -> Callable:
    """The expert's `atom_energies`, `chunk_size` rows at a time.

    Memory is bounded by one chunk, also under differentiation. When only the
    displacements vary (molecular dynamics), each chunk returns its partial forces
    along with its energies, in one pass. Rows of an expert with `num_hops` above 1
    depend on one another: for it the expert's `atom_energies` is returned as it is.

    Args:
        expert: the potential.
        chunk_size: rows per chunk, at least 1.

    Returns:
        `(params, Neighborhood, wanted=None) -> [n] eV`, differentiable to any
        order; `wanted` as in `map_rows`.

    Raises:
        ValueError: `chunk_size` is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    if expert.num_hops > 1:
        return expert.atom_energies

    @jax.custom_jvp
    def energies(params, displacement, rest, wanted):
        rows = Neighborhood(displacement, *rest)
        return map_rows(lambda chunk: expert.atom_energies(params, chunk), rows, chunk_size, wanted)

    def jvp(primals, tangents):
        params, displacement, rest, wanted = primals
        params_dot, displacement_dot, *_ = tangents
        e, g = map_rows(
            lambda chunk: energies_and_partial_forces(expert, params, chunk),
            Neighborhood(displacement, *rest),
            chunk_size,
            wanted,
        )
        e_dot = jnp.zeros_like(e)
        if not isinstance(displacement_dot, SymbolicZero):
            e_dot = e_dot + jnp.sum(g * displacement_dot, axis=(1, 2))
        if any(not isinstance(t, SymbolicZero) for t in jax.tree.leaves(params_dot)):
            dot = jax.tree.map(
                lambda p, t: jnp.zeros_like(p) if isinstance(t, SymbolicZero) else t, params, params_dot
            )

            def of_params(p):
                rows = Neighborhood(displacement, *rest)
                return map_rows(lambda chunk: expert.atom_energies(p, chunk), rows, chunk_size, wanted)

            e_dot = e_dot + jax.jvp(of_params, (params,), (dot,))[1]
        return e, e_dot

    energies.defjvp(jvp, symbolic_zeros=True)

    def atom_energies(
        params: Params, rows: Neighborhood, wanted: Int[ArrayLike, ""] | None = None
    ) -> Float[Array, " n"]:
        return energies(params, rows.displacement, rows[1:], wanted)

    return atom_energies


def register_expert(builder: Callable) -> Callable:
    """Register the builder of an expert, so that checkpoints and settings files can name it.

    Use it as a decorator. A checkpoint stores the `config` of its experts and no code,
    so the module with the builder must be imported before the checkpoint is loaded.

    Args:
        builder: `(species, cutoff, *, ...) -> Expert`, whose `config` is
            `{"builder": builder.__name__, ...}` with the builder's arguments.

    Returns:
        The builder itself.

    Raises:
        ValueError: another builder has the same name.
    """
    name = getattr(builder, "__name__", "")
    if BUILDERS.setdefault(name, builder) is not builder:
        raise ValueError(f"builder must have a name of its own, got {name!r} twice: rename the function.")
    return builder


def build(config: dict) -> Expert:
    """The expert of a `config`.

    Args:
        config: `{"builder": name, ...}` with the builder's keyword arguments.

    Raises:
        ValueError: the builder or an argument is unknown.
    """
    # Checkpoints of earlier versions use earlier names of arguments.
    arguments = {KEYS.get(key, key): value for key, value in config.items()}
    name = arguments.pop("builder", None)
    if not isinstance(name, str) or name not in BUILDERS:
        raise ValueError(f"builder must be one of {sorted(BUILDERS)}, got {name!r}.")
    try:
        return BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"arguments of {name} must be those of mm.experts.{name}: {error}.") from None


def cast(params: Params, dtype) -> Params:
    """Parameters in another dtype, that of the positions."""
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


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
    species, cutoff = config["species"], float(config["cutoff"])
    allowed_species = tuple(species if config["allowed_species"] is None else config["allowed_species"])
    species = tuple(species)
    pair_cutoffs = config.get("pair_cutoffs")
    numbers = [atomic_numbers.get(symbol, 0) for symbol in species]
    if config.get("zbl") and min(numbers) < 1:
        raise ValueError(f"species must be chemical symbols where zbl = True, got {species}.")

    @jax.jit  # compiled whole, as the network would otherwise run operation by operation
    def init(key: PRNGKeyArray) -> Params:
        row = Neighborhood(
            displacement=jnp.ones((1, 1, 3)),
            mask=jnp.ones((1, 1), bool),
            center_species=jnp.zeros(1, jnp.int32),
            neighbor_species=jnp.zeros((1, 1), jnp.int32),
            neighbor=jnp.zeros((1, 1), jnp.int32),
        )
        return {
            "network": network.init(key, row)["params"],
            "scale": jnp.ones(len(species)),
            "shift": jnp.zeros(len(species)),
        }

    def atom_energies(params: Params, rows: Neighborhood) -> Float[Array, " n"]:
        p = cast(params, rows.displacement.dtype)
        energies = network.apply({"params": p["network"]}, rows)
        energies = p["scale"][rows.center_species] * energies + p["shift"][rows.center_species]
        if config.get("zbl"):
            energies = energies + zbl_energies(rows, numbers, pair_cutoff(rows, cutoff, pair_cutoffs))
        return energies

    return Expert(init, atom_energies, cutoff, species, allowed_species, stored_config(name, config))


def stored_config(builder: str, arguments: dict) -> dict:
    """`Expert.config` of a builder's arguments: tuples become lists, as in JSON."""
    plain = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in arguments.items()}
    return {"builder": builder, **plain}
