"""The contract of an expert, and functions that serve every expert."""

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_md.experts.familiarity import Familiarity
from moe_md.experts.neighbor_sums import NeighborSums
from moe_md.files import plain
from moe_md.renamed import KEYS

Params = Any
BUILDERS: dict[str, Callable] = {}  # filled by `register_expert`
FUNCTIONS = ("init", "atom_energies", "neighbor_sums", "inputs")  # fields of an expert


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
    neighbor_sums: NeighborSums | None = None  # where E_i is a function of sums over neighbours
    # (params, Neighborhood) -> [n, inputs], of the network of a centre. Training stores their mean and scale
    # in params["inputs"].
    inputs: Callable | None = None
    # Environments that it was trained for; None where its domain is by species alone.
    familiarity: Familiarity | None = None

    def __reduce__(self) -> tuple:
        """For pickle: an expert of a registered builder is built again, from its `config`."""
        builder = BUILDERS.get(self.config.get("builder", "")) if isinstance(self.config, dict) else None
        if builder is not None:
            built = _built(builder, self.config)
            if all(_origin(a) == _origin(b) for a, b in zip(self._functions, built._functions)):
                return _rebuilt, (builder, {k: v for k, v in self._asdict().items() if k not in FUNCTIONS})
        return Expert, tuple(self)  # its functions are pickled by name

    @property
    def _functions(self) -> tuple:
        """The fields that a builder makes anew."""
        return tuple(getattr(self, name) for name in FUNCTIONS)

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


def _rebuilt(builder: Callable, fields: dict) -> Expert:
    """The expert of a pickle, from its builder and all fields but the functions."""
    return _built(builder, fields["config"])._replace(**fields)


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


def stored_config(builder: str, arguments: dict) -> dict:
    """`Expert.config` of a builder's arguments: tuples become lists, as in JSON."""
    plain = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in arguments.items()}
    return {"builder": builder, **plain}
