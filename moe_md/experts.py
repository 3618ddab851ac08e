"""Experts: whole potentials as two pure functions of rows of centres.

An expert knows displacements only, so one expert serves molecular dynamics,
training, ASE and an MPI engine. Everything else (forces, virial, stress)
follows from the partial forces g = dE_i / d displacement of each row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array
from jax.custom_derivatives import SymbolicZero

from moe_md.checks import check_value
from moe_md.models.allegro import AllegroNetwork
from moe_md.models.classical import lennard_jones_energies, zbl_energies
from moe_md.models.embedded_atom import EmbeddedAtomNetwork
from moe_md.models.message_passing import NequIPNetwork
from moe_md.models.mlp import NONLINEARITIES
from moe_md.models.power_spectrum import PowerSpectrumNetwork
from moe_md.models.radial import pair_cutoff
from moe_md.neighborhood import Neighborhood, map_rows

Params = Any
MAX_ORDER = 8  # of spherical harmonics
MAX_DEPTH = 32  # layers of a network


class Expert(NamedTuple):
    """A potential E = sum_i E_i, a sum over rows.

    With `num_hops` 1 it is strictly local: E_i depends on row i alone, and
    `Neighborhood.neighbor` is not looked at. Above 1 it passes messages along
    `neighbor`, the row number of each neighbour in that very `Neighborhood`: a
    number of at least `n` says that the neighbour has no row there, and it
    sends its species alone. E_i is right if the rows of all atoms within
    `num_hops` - 1 neighbours of i are given; the other energies that come back
    mean nothing.
    """

    init: Callable  # (key) -> params
    atom_energies: Callable  # (params, Neighborhood) -> [n] eV
    cutoff: float  # Å; the expert itself vanishes smoothly there
    species: tuple[str, ...]  # one tuple shared by all experts of a mixture
    domain: tuple[str, ...]  # species it may meet, as centre or neighbour
    config: dict  # builder name and keyword arguments: what a checkpoint stores
    num_hops: int = 1  # an energy depends on rows within num_hops - 1 neighbours of its centre
    dear_slots: bool = False  # a slot costs so much that a mixture hands it rows without the skin's


def energies_and_partial_forces(expert: Expert, params: Params, rows: Neighborhood) -> tuple[Array, Array]:
    """Per-atom energies and g = dE_i / d displacement of every slot.

    Of an expert with `num_hops` above 1 it is g = d(sum_j E_j) / d displacement,
    over all rows j: where some rows are there for their messages only, mask
    their energies and differentiate that sum instead.

    Args:
        expert: the potential.
        params: its parameters.
        rows: `n` rows of `K` slots.

    Returns:
        energies `[n]` eV and g `[n, K, 3]` eV/Å, zero on padded slots.
    """

    def total(displacement):
        energies = expert.atom_energies(params, rows._replace(displacement=displacement))
        return jnp.sum(energies), energies

    g, energies = jax.grad(total, has_aux=True)(rows.displacement)
    return energies, g


def chunked_atom_energies(expert: Expert, chunk_size: int) -> Callable:
    """The expert's `atom_energies`, `chunk_size` rows at a time.

    Memory is bounded by one chunk, also under differentiation: when only the
    displacements vary (molecular dynamics), each chunk returns its partial
    forces along with its energies, in one pass and with nothing recomputed.
    Rows of an expert with `num_hops` above 1 depend on one another: it gets
    its own `atom_energies` back, whatever the chunk.

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

    def atom_energies(params, rows: Neighborhood, wanted: Array | None = None):
        return energies(params, rows.displacement, rows[1:], wanted)

    return atom_energies


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
    domain: Sequence[str] | None = None,
) -> Expert:
    """The expensive expert: Allegro, as in `nequip-allegro` 0.8.3.

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
            (`models.classical.zbl_energies`), after scale and shift.
        domain: species it may meet; default all.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`; scale and
        shift are `[n_species]`, eV.

    Raises:
        ValueError: an argument is out of range.

    >>> expert = allegro(("Pt",), 4.0, num_layers=1, num_scalar_features=8, num_tensor_features=4)
    >>> params = expert.init(jax.random.key(0))
    >>> params["shift"].shape
    (1,)
    """
    config = dict(locals())
    _check_species(species, cutoff, domain)
    _check_whole("num_layers", num_layers, 1, MAX_DEPTH)
    _check_whole("l_max", l_max, 0, MAX_ORDER)
    _check_whole("num_tensor_features", num_tensor_features, 1)
    _check_whole("num_bessels", num_bessels, 1)
    _check_power(polynomial_cutoff_p)
    for name, widths in (
        ("scalar_embed_mlp", scalar_embed_mlp),
        ("allegro_mlp", allegro_mlp),
        ("readout_mlp", readout_mlp),
    ):
        _check_widths(name, widths)
    for name, flag in (("parity", parity), ("path_channel_coupling", path_channel_coupling), ("zbl", zbl)):
        check_value(name, flag, bool)
    check_value("nonlinearity", nonlinearity, str)
    _check_whole("num_scalar_features", num_scalar_features, 2)
    if num_scalar_features % 2 or num_scalar_features < 2:
        raise ValueError(f"num_scalar_features must be even and positive, got {num_scalar_features}.")
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f"nonlinearity must be one of {tuple(NONLINEARITIES)}, got {nonlinearity!r}.")
    if pair_cutoffs is not None:
        pair_cutoffs = _checked_pair_cutoffs(pair_cutoffs, len(species), cutoff)
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
        avg_num_neighbors=_checked_avg_num_neighbors(avg_num_neighbors, len(species)),
        path_channel_coupling=path_channel_coupling,
        nonlinearity=nonlinearity,
        pair_cutoffs=pair_cutoffs,
    )
    return _network_expert("allegro", network, config)._replace(dear_slots=True)


def power_spectrum(
    species: Sequence[str],
    cutoff: float,
    *,
    l_max: int = 3,
    num_bessels: int = 8,
    num_channels: int = 16,
    hidden: Sequence[int] = (64, 64),
    polynomial_cutoff_p: float = 6.0,
    avg_num_neighbors: float = 40.0,
    domain: Sequence[str] | None = None,
) -> Expert:
    """The cheap expert: invariants of each centre's density, one small network.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        l_max: highest order of the spherical harmonics.
        num_bessels: radial functions.
        num_channels: invariants per order.
        hidden: widths of the network of a centre.
        polynomial_cutoff_p: power of the envelope.
        avg_num_neighbors: normalises the density.
        domain: species it may meet, as centre or neighbour; default all.
            Neighbours of other species are not seen.

    Returns:
        An expert whose params are `{"network", "scale", "shift"}`.

    Raises:
        ValueError: an argument is out of range.
    """
    config = dict(locals())
    _check_species(species, cutoff, domain)
    _check_whole("l_max", l_max, 0, MAX_ORDER)
    _check_whole("num_bessels", num_bessels, 1)
    _check_whole("num_channels", num_channels, 1)
    _check_power(polynomial_cutoff_p)
    _check_widths("hidden", hidden)
    check_value("avg_num_neighbors", avg_num_neighbors, float)
    allowed = tuple(species) if domain is None else tuple(domain)
    network = PowerSpectrumNetwork(
        domain=tuple(tuple(species).index(s) for s in allowed),
        num_species=len(species),
        cutoff=float(cutoff),
        l_max=l_max,
        num_bessels=num_bessels,
        num_channels=num_channels,
        hidden=tuple(hidden),
        polynomial_cutoff_p=polynomial_cutoff_p,
        avg_num_neighbors=_checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return _network_expert("power_spectrum", network, config)


def embedded_atom(
    species: Sequence[str],
    cutoff: float,
    *,
    num_bessels: int = 8,
    num_densities: int = 2,
    hidden: Sequence[int] = (16, 16),
    polynomial_cutoff_p: float = 6.0,
    avg_num_neighbors: float = 40.0,
    domain: Sequence[str] | None = None,
) -> Expert:
    """The cheapest learned expert: pairs, and an energy of embedding in a density.

    E_i = 1/2 sum_j phi(r_ij) + F(rho_i) - F(0), rho_i = sum_j psi(r_ij), with
    phi and psi sums of Bessel functions times the envelope, learned per species
    of centre and neighbour, and F a small network per species of the centre.
    It knows no angles: right for close-packed metals, wrong for molecules.

    Args:
        species: chemical symbols; an atom's species is its index here.
        cutoff: Å.
        num_bessels: radial functions.
        num_densities: components of rho; one is the classical model.
        hidden: widths of the network F.
        polynomial_cutoff_p: power of the envelope.
        avg_num_neighbors: normalises the sums over neighbours.
        domain: species it may meet, as centre or neighbour; default all.
            Neighbours of other species are not seen.

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
    _check_species(species, cutoff, domain)
    _check_whole("num_bessels", num_bessels, 1)
    _check_whole("num_densities", num_densities, 1)
    _check_power(polynomial_cutoff_p)
    _check_widths("hidden", hidden)
    check_value("avg_num_neighbors", avg_num_neighbors, float)
    allowed = tuple(species) if domain is None else tuple(domain)
    network = EmbeddedAtomNetwork(
        domain=tuple(tuple(species).index(s) for s in allowed),
        num_species=len(species),
        cutoff=float(cutoff),
        num_bessels=num_bessels,
        num_densities=num_densities,
        hidden=tuple(hidden),
        polynomial_cutoff_p=polynomial_cutoff_p,
        avg_num_neighbors=_checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return _network_expert("embedded_atom", network, config)


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
    domain: Sequence[str] | None = None,
) -> Expert:
    """An expert that passes messages: jax-md's NequIP, `jax_md.nn.nequip`.

    Its `num_hops` is `num_layers`, so a centre sees as far as `num_layers`
    cutoffs, and needs the rows of its neighbours up to `num_layers` - 1 away.
    The energy is counted from that of an isolated atom.

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
        radial_width, radial_depth: hidden layers of the network that weighs
            the messages by distance.
        avg_num_neighbors: divides sums over neighbours (jax-md divides by the
            number, not by its root).
        domain: species it may meet; default all.

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
    _check_species(species, cutoff, domain)
    _check_whole("l_max", l_max, 0, MAX_ORDER)
    for name in ("num_layers", "num_bessels", "radial_width", "radial_depth"):
        _check_whole(name, config[name], 1)
    _check_whole("num_layers", num_layers, 1, MAX_DEPTH)
    _check_whole("radial_depth", radial_depth, 1, MAX_DEPTH)
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
        avg_num_neighbors=_checked_avg_num_neighbors(float(avg_num_neighbors), len(species)),
    )
    return _network_expert("nequip", network, config)._replace(num_hops=num_layers)


def lennard_jones(
    species: Sequence[str],
    cutoff: float,
    *,
    epsilon: float = 1.0,
    sigma: float = 1.0,
    onset: float | None = None,
    domain: Sequence[str] | None = None,
) -> Expert:
    """An analytic expert, one pair potential for all species.

    Args:
        species: chemical symbols.
        cutoff: Å.
        epsilon: initial well depth, eV.
        sigma: initial diameter, Å.
        onset: Å, where switching begins; default 0.8 cutoff.
        domain: species it may meet; default all.

    Returns:
        An expert whose params are `{"epsilon", "sigma"}`.

    Raises:
        ValueError: an argument is out of range.
    """
    config = dict(locals())
    _check_species(species, cutoff, domain)
    allowed = tuple(species) if domain is None else tuple(domain)
    check_value("epsilon", epsilon, float)
    check_value("sigma", sigma, float)
    onset = 0.8 * cutoff if onset is None else onset
    check_value("onset", onset, float)
    if not 0 < onset < cutoff:
        raise ValueError(f"onset must lie between 0 and cutoff = {cutoff} Å, got {onset}.")

    def init(key):
        del key
        return {"epsilon": jnp.asarray(float(epsilon)), "sigma": jnp.asarray(float(sigma))}

    def atom_energies(params, rows: Neighborhood):
        p = cast(params, rows.displacement.dtype)
        return lennard_jones_energies(rows, p["epsilon"], p["sigma"], onset, cutoff)

    return Expert(
        init, atom_energies, float(cutoff), tuple(species), allowed, _config("lennard_jones", config)
    )


BUILDERS = {
    "allegro": allegro,
    "power_spectrum": power_spectrum,
    "embedded_atom": embedded_atom,
    "nequip": nequip,
    "lennard_jones": lennard_jones,
}


def build(config: dict) -> Expert:
    """The expert that a `config` describes.

    Args:
        config: `{"builder": name, ...}`, the builder's keyword arguments.

    Raises:
        ValueError: the builder or an argument is unknown.
    """
    arguments = dict(config)
    name = arguments.pop("builder", None)
    if not isinstance(name, str) or name not in BUILDERS:
        raise ValueError(f"builder must be one of {sorted(BUILDERS)}, got {name!r}.")
    try:
        return BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"arguments of {name} must be those of mm.experts.{name}: {error}.") from None


def cast(params: Params, dtype) -> Params:
    """Parameters in the dtype of the positions."""
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def _network_expert(name: str, network: nn.Module, config: dict) -> Expert:
    species, cutoff = config["species"], float(config["cutoff"])
    domain = tuple(species if config["domain"] is None else config["domain"])
    species = tuple(species)
    pair_cutoffs = config.get("pair_cutoffs")
    numbers = [atomic_numbers.get(symbol, 0) for symbol in species]
    if config.get("zbl") and min(numbers) < 1:
        raise ValueError(f"species must be chemical symbols where zbl is asked for, got {species}.")

    def init(key):
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

    def atom_energies(params, rows: Neighborhood):
        p = cast(params, rows.displacement.dtype)
        energies = network.apply({"params": p["network"]}, rows)
        energies = p["scale"][rows.center_species] * energies + p["shift"][rows.center_species]
        if config.get("zbl"):
            energies = energies + zbl_energies(rows, numbers, pair_cutoff(rows, cutoff, pair_cutoffs))
        return energies

    return Expert(init, atom_energies, cutoff, species, domain, _config(name, config))


@overload
def _checked_avg_num_neighbors(value: float, n_species: int) -> float: ...


@overload
def _checked_avg_num_neighbors(value, n_species: int) -> float | tuple[float, ...]: ...


def _checked_avg_num_neighbors(value, n_species: int) -> float | tuple[float, ...]:
    numbers = _numbers(value)
    if numbers.shape not in ((), (n_species,)) or not np.all((numbers > 0) & (numbers < np.inf)):
        raise ValueError(
            f"avg_num_neighbors must be positive, one number or one per species, got {value!r:.80}."
        )
    return numbers.item() if numbers.ndim == 0 else tuple(numbers.tolist())


def _checked_pair_cutoffs(value, n_species: int, cutoff: float) -> tuple[tuple[float, ...], ...]:
    table = _numbers(value)
    if table.shape != (n_species, n_species) or not np.all((table > 0) & (table <= cutoff)):
        raise ValueError(
            f"pair_cutoffs must be {n_species} rows of {n_species} numbers above 0 "
            f"and up to cutoff = {cutoff} Å, got {value!r:.80}."
        )
    return tuple(map(tuple, table.tolist()))


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


def _numbers(value) -> np.ndarray:
    """NaN where these are no numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        return np.asarray(np.nan)
    return array.astype(float) if array.dtype.kind in "iuf" else np.asarray(np.nan)


def _config(builder: str, arguments: dict) -> dict:
    plain = {k: list(v) if isinstance(v, (tuple, list)) else v for k, v in arguments.items()}
    return {"builder": builder, **plain}


def _check_species(species: Sequence[str], cutoff: float, domain: Sequence[str] | None) -> None:
    if not _are_names(species) or len(species) == 0 or len(set(species)) != len(species):
        raise ValueError(f"species must be a tuple of distinct chemical symbols, got {species!r:.80}.")
    check_value("cutoff", cutoff, float)
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive (Å), got {cutoff}.")
    if domain is not None and (not _are_names(domain) or len(domain) == 0 or not set(domain) <= set(species)):
        raise ValueError(
            f"domain must be a non-empty subset of species {tuple(species)}, got {domain!r:.80}."
        )


def _are_names(value) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value)


def _check_whole(name: str, value, least: int, most: int | None = None) -> None:
    check_value(name, value, int)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}.")


def _check_power(value) -> None:
    check_value("polynomial_cutoff_p", value, float)
    if not 2 <= value <= 100:
        raise ValueError(f"polynomial_cutoff_p must lie between 2 and 100, got {value}.")


def _check_widths(name: str, widths) -> None:
    if not isinstance(widths, (tuple, list)) or len(widths) > MAX_DEPTH:
        raise ValueError(f"{name} must be a tuple of at most {MAX_DEPTH} widths, got {widths!r:.80}.")
    for width in widths:
        _check_whole(name, width, 1)
