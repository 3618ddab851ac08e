"""Properties of a perfect fcc crystal under one expert.

Its atoms are all alike, so one row is the whole crystal. Let F deform it, d
becoming F d for every displacement d, and E(F) be the energy per atom, V the
volume per atom. Then

    P = -dE/dV,    stress = (1/V) dE/dF F^T,    C = d stress / d strain,

and with the force constants Phi_0j = d2E_total / du_0 du_j the frequencies of
a wave follow (phonopy). All derivatives are exact, by automatic differentiation.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers, reference_states
from jax import Array
from scipy.optimize import brentq

from moe_md import units
from moe_md.checkpoint import Checkpoint
from moe_md.checks import check_positive, check_value
from moe_md.experts.base import Expert, Params
from moe_md.neighbors.rows import Neighborhood, rows_from_images

EOS_STRAINS = np.linspace(-0.04, 0.04, 9)  # of the lattice constant, in a report
SLOW_THZ = 0.3  # below it, next to Gamma, relative differences of frequencies mean nothing

# Gamma-X, then X-K-Gamma straight on along (1, 1, 0), then Gamma-L; X is met at
# (1, 0, 0) and at the equivalent (1, 1, 0). Fractions of the primitive reciprocal vectors.
_GAMMA, _K, _L = (0.0, 0.0, 0.0), (0.375, 0.375, 0.75), (0.5, 0.5, 0.5)
_PATH = (
    (_GAMMA, (0.0, 0.5, 0.5)),
    ((0.5, 0.5, 1.0), _K),
    (_K, _GAMMA),
    (_GAMMA, _L),
)
PATH_LABELS = ("Γ", "X", "K", "Γ", "L")


Number = TypeVar("Number", float, Array)


class Crystal(NamedTuple, Generic[Number]):
    """An fcc crystal at rest: of numbers, or under jit of arrays of no dimension."""

    lattice_constant: Number  # Å
    energy: Number  # eV per atom
    bulk_modulus_GPa: Number


class Elastic(NamedTuple):
    """Elastic constants of a cubic crystal, GPa."""

    C11: float
    C12: float
    C44: float
    bulk_modulus: float  # (C11 + 2 C12) / 3


class Phonons(NamedTuple):
    """Frequencies along Γ-X-K-Γ-L."""

    distance: np.ndarray  # [n_q] 1/Å, length of the path so far, 2 pi included
    labels: tuple[str, ...]  # corners of the path
    ticks: tuple[int, ...]  # the point of each corner, an index into n_q
    q_points: np.ndarray  # [n_q, 3], fractions of the primitive reciprocal vectors
    frequencies_THz: np.ndarray  # [n_q, 3] rising; an unstable wave's is imaginary, given as negative


def relax_fcc(
    expert: Expert,
    params: Params,
    symbol: str = "Pt",
    *,
    guess: float | None = None,
    window: float = 0.15,
) -> Crystal:
    """The fcc crystal of least energy.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        guess: Å, a lattice constant near the answer; default ASE's for the element.
        window: the search covers `guess * (1 - window)` to `guess * (1 + window)`.

    Returns:
        The crystal at zero pressure. In the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, no guess is known, or
            the energy has no minimum inside the window.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> crystal = relax_fcc(expert, expert.init(None), "Ar")
    >>> round(crystal.lattice_constant, 1)
    5.3
    """
    _check_symbol(expert, symbol)
    if guess is None:
        guess = cast("float | None", (reference_states[atomic_numbers[symbol]] or {}).get("a"))
        if guess is None:
            raise ValueError(f"guess must be given (Å): no lattice constant of {symbol} is known.")
    if not (guess > 0 and 0 < window < 1):
        raise ValueError(f"guess must be positive (Å) and window in (0, 1), got {guess} and {window}.")
    energy_of = _uniformly_strained(
        expert, params, _one_row(expert, symbol, guess, expert.cutoff / (1 - window))
    )
    low, high = np.log1p(-window), np.log1p(window)
    strains = np.linspace(low, high, 31)
    energies = np.array([float(energy_of(s)[0]) for s in strains])
    at = int(np.argmin(energies))
    if at in (0, len(strains) - 1):
        raise ValueError(
            f"guess must lie near a minimum of the energy of {symbol}, "
            f"but between {guess * np.exp(low):.3f} and {guess * np.exp(high):.3f} Å "
            f"it falls towards {guess * np.exp(strains[at]):.3f} Å, got {guess}."
        )
    strain = brentq(lambda s: float(energy_of(s)[1]), strains[at - 1], strains[at + 1], xtol=1e-10)
    energy, _, curvature = (float(x) for x in energy_of(strain))
    lattice_constant = float(guess * np.exp(strain))
    return Crystal(lattice_constant, energy, curvature / (9 * lattice_constant**3 / 4) / units.GPa)


def equation_of_state(
    expert: Expert, params: Params, symbol: str = "Pt", *, lattice_constants: Sequence[float] | np.ndarray
) -> dict[str, list[float]]:
    """Energy and pressure of an fcc crystal over its volume.

    With E(s) the energy per atom at the uniform strain exp(s), P = -E'(s) / 3V.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constants: Å, one or more, in any order, kept.

    Returns:
        Lists as long as `lattice_constants`: `volume_A3_per_atom`,
        `energy_eV_per_atom` and `pressure_GPa`, positive where the crystal
        would expand. In the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, or a lattice constant
            is not positive, or there is none.

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> curve = equation_of_state(expert, expert.init(None), "Ar", lattice_constants=[5.0, 5.5])
    >>> [bool(p > 0) for p in curve["pressure_GPa"]]
    [True, False]
    """
    _check_symbol(expert, symbol)
    if len(lattice_constants) == 0:
        raise ValueError("lattice_constants must not be empty.")
    for a in lattice_constants:
        check_positive("each of lattice_constants", a)
    a = np.asarray(lattice_constants, float)
    widest = a.max()
    energy_of = _uniformly_strained(
        expert, params, _one_row(expert, symbol, widest, expert.cutoff * widest / a.min())
    )
    energy, slope, _ = np.array([energy_of(s) for s in np.log(a / widest)], float).T
    volume = a**3 / 4
    return {
        "volume_A3_per_atom": volume.tolist(),
        "energy_eV_per_atom": energy.tolist(),
        "pressure_GPa": (-slope / (3 * volume) / units.GPa).tolist(),
    }


def elastic_constants(
    expert: Expert, params: Params, symbol: str = "Pt", *, lattice_constant: float
) -> Elastic:
    """Elastic constants of an fcc crystal.

    They say how the true (Cauchy) stress answers a small strain e of the
    crystal as it stands, C_ijkl = d stress_ij / d e_kl, and are second derivatives of
    the energy per atom. At rest, P = 0, that is (1/V) d2E / de_ij de_kl, for whatever
    measure of strain. Under pressure measures differ. These constants are Birch's,
    which decide on stability and on the speed of sound; from
    (1/V) d2E / d eta^2, eta the Lagrangian strain, they differ by -P in C11 and C44
    and +P in C12. At any pressure (C11 + 2 C12) / 3 is the bulk modulus
    -V dP/dV. Each atom is a centre of inversion, so no atom moves within its cell.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constant: Å; for the crystal at rest `relax_fcc`'s.

    Returns:
        C11, C12, C44 and the bulk modulus, GPa. In the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, or the lattice
            constant is not positive.

    Source:
        Wallace, Thermodynamics of Crystals (1972), ch. 1; Barron and Klein,
        Proc. Phys. Soc. 85, 523 (1965).

    A pair potential at rest has C12 = C44 (Cauchy):

    >>> from moe_md.experts import lennard_jones
    >>> expert = lennard_jones(("Ar",), 8.5, epsilon=0.0104, sigma=3.4)
    >>> at_rest = relax_fcc(expert, expert.init(None), "Ar").lattice_constant
    >>> C11, C12, C44, B = elastic_constants(expert, expert.init(None), "Ar", lattice_constant=at_rest)
    >>> abs(C12 - C44) < 1e-3 * C44
    True
    """
    _check_symbol(expert, symbol)
    check_positive("lattice_constant", lattice_constant)
    volume = lattice_constant**3 / 4
    rows = _one_row(expert, symbol, lattice_constant, expert.cutoff)

    @jax.jit
    def answers(params, rows, strains):
        def stress(F):
            slope = jax.grad(lambda F: _deformed(expert, params, rows, F))(F)
            return slope @ F.T / (volume * jnp.linalg.det(F))

        return jax.vmap(lambda strain: jax.jvp(stress, (jnp.eye(3),), (strain,))[1])(strains)

    stretch = jnp.diag(jnp.array([1.0, 0.0, 0.0]))
    shear = jnp.zeros((3, 3)).at[1, 2].set(0.5).at[2, 1].set(0.5)
    stretched, sheared = np.asarray(answers(params, rows, jnp.stack([stretch, shear])), float) / units.GPa
    C11, C12, C44 = float(stretched[0, 0]), float(stretched[1, 1]), float(sheared[1, 2])
    return Elastic(C11, C12, C44, (C11 + 2 * C12) / 3)


def phonons(
    expert: Expert,
    params: Params,
    symbol: str = "Pt",
    *,
    lattice_constant: float,
    repeat: int | None = None,
    n_points: int = 21,
) -> Phonons:
    """Frequencies of the waves of an fcc crystal, along Γ-X-K-Γ-L.

    The force constants Phi_0j of a supercell are exact, by automatic
    differentiation; phonopy turns them into frequencies. An expert sees as far as its
    cutoff, so two atoms feel each other up to twice that far apart, as
    neighbours of a third. Where the supercell has room for that, the
    frequencies are the infinite crystal's at every wave vector; in a smaller
    one they are at those that fit it (X and L an even `repeat`, K one of 8),
    and interpolated between.

    Args:
        expert: the potential.
        params: its parameters.
        symbol: an element of `expert.species`.
        lattice_constant: Å.
        repeat: primitive cells along each of their axes; default the least
            that has room, 4 sqrt(2) cutoff / lattice_constant, times
            `num_hops` where the expert passes messages.
        n_points: on each of the four stretches, both ends included.

    Returns:
        Frequencies at `n_q = 4 (n_points - 1) + 1` wave vectors. In the dtype jax runs in.

    Raises:
        ValueError: the expert does not know the element, or an argument is out of
            range.
        ImportError: phonopy is not installed.

    Source:
        A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023), doi:10.7566/JPSJ.92.012001.
    """
    _check_symbol(expert, symbol)
    check_positive("lattice_constant", lattice_constant)
    if repeat is None:
        repeat = int(np.ceil(4 * np.sqrt(2) * expert.num_hops * expert.cutoff / lattice_constant))
    check_value("repeat", repeat, int)
    check_value("n_points", n_points, int)
    if repeat < 1 or n_points < 2:
        raise ValueError(f"repeat must be at least 1 and n_points at least 2, got {repeat} and {n_points}.")
    Phonopy, PhonopyAtoms = _phonopy()
    cell = bulk(symbol, "fcc", a=lattice_constant).cell.array
    mass = atomic_masses[atomic_numbers[symbol]]
    unit = PhonopyAtoms(symbols=[symbol], scaled_positions=[[0, 0, 0]], cell=cell, masses=[mass])
    crystal = Phonopy(unit, np.diag([repeat] * 3), primitive_matrix=np.eye(3), is_symmetry=False)
    supercell = crystal.supercell
    constants = _force_constants(expert, params, symbol, supercell.positions, supercell.cell)
    crystal.force_constants = np.ascontiguousarray(constants[None])  # of the one atom of the primitive cell
    q, ticks = _path(n_points)
    crystal.run_qpoints(q)
    frequencies = np.asarray(crystal.get_qpoints_dict()["frequencies"])
    step = np.linalg.norm(np.diff(q, axis=0) @ (2 * np.pi * np.linalg.inv(cell).T), axis=1)
    step[ticks[1]] = np.linalg.norm((q[ticks[1] + 1] - _PATH[1][0]) @ (2 * np.pi * np.linalg.inv(cell).T))
    return Phonons(np.concatenate([[0.0], np.cumsum(step)]), PATH_LABELS, ticks, q, frequencies)


def fcc_report(checkpoint: Checkpoint, symbol: str = "Pt", *, guess: float | None = None) -> dict:
    """The perfect crystal under every expert, and how far the first two differ.

    Args:
        checkpoint: any number of experts.
        symbol: an element that every expert may meet.
        guess: Å, a lattice constant near the answer; default as `relax_fcc`.

    Returns:
        Fit for JSON. `symbol`; `experts`, for each in order `builder`,
        `lattice_constant_A`, `energy_eV_per_atom`, `bulk_modulus_GPa`,
        `C11_GPa`, `C12_GPa`, `C44_GPa`, `equation_of_state` (at lattice constants
        up to 4 % to either side), `phonons` (`distance`, `labels`, `ticks`,
        `frequencies_THz`) and, of these, `frequencies_THz` at `X`, `K` and
        `L`. `differences`, None for one expert: of the second from the first, in percent,
        `lattice_constant`, `bulk_modulus`, `C11`, `C12`, `C44`, `phonons_rms` and
        `phonons_max`, over waves of at least 0.3 THz under the first; and
        `energy_meV_per_atom`. Each expert has its own lattice constant.
        Computed in float64.

    Raises:
        ValueError: an expert may not meet the element, or as `relax_fcc`.
        ImportError: phonopy is not installed.
    """
    for number, expert in enumerate(checkpoint.experts):
        if symbol not in expert.allowed_species:
            raise ValueError(
                "symbol must be in the domain of every expert, "
                f"{expert.allowed_species} of expert {number}, got {symbol!r}."
            )
    _phonopy()
    with jax.enable_x64(True):
        pairs = zip(checkpoint.experts, checkpoint.params, strict=True)
        of_experts = [_of_expert(expert, params, symbol, guess) for expert, params in pairs]
    differences = _differences(*of_experts[:2]) if len(of_experts) > 1 else None
    return {"symbol": symbol, "experts": of_experts, "differences": differences}


def _of_expert(expert: Expert, params: Params, symbol: str, guess: float | None) -> dict:
    crystal = relax_fcc(expert, params, symbol, guess=guess)
    a = crystal.lattice_constant
    elastic = elastic_constants(expert, params, symbol, lattice_constant=a)
    waves = phonons(expert, params, symbol, lattice_constant=a)
    corner = dict(zip(waves.labels, waves.ticks))
    return {
        "builder": expert.config["builder"],
        "lattice_constant_A": a,
        "energy_eV_per_atom": crystal.energy,
        "bulk_modulus_GPa": crystal.bulk_modulus_GPa,
        **{f"{name}_GPa": getattr(elastic, name) for name in ("C11", "C12", "C44")},
        "equation_of_state": equation_of_state(
            expert, params, symbol, lattice_constants=a * (1 + EOS_STRAINS)
        ),
        "frequencies_THz": {name: waves.frequencies_THz[corner[name]].tolist() for name in ("X", "K", "L")},
        "phonons": {
            "distance": waves.distance.tolist(),
            "labels": list(waves.labels),
            "ticks": list(waves.ticks),
            "frequencies_THz": waves.frequencies_THz.tolist(),
        },
    }


def _differences(first: dict, second: dict) -> dict[str, float]:
    """Of the second expert from the first, percent of the first's value."""

    def percent(key: str) -> float:
        return 100 * (second[key] / first[key] - 1)

    f_1, f_2 = (np.array(found["phonons"]["frequencies_THz"]) for found in (first, second))
    waves = f_1 >= SLOW_THZ
    relative = 100 * (f_2[waves] / f_1[waves] - 1)
    return {
        "lattice_constant": percent("lattice_constant_A"),
        "bulk_modulus": percent("bulk_modulus_GPa"),
        **{name: percent(f"{name}_GPa") for name in ("C11", "C12", "C44")},
        "phonons_rms": float(np.sqrt(np.mean(relative**2))),
        "phonons_max": float(np.abs(relative).max()),
        "energy_meV_per_atom": 1000 * (second["energy_eV_per_atom"] - first["energy_eV_per_atom"]),
    }


def _one_row(expert: Expert, symbol: str, lattice_constant: float, reach: float) -> Neighborhood:
    """The atom of a primitive cell and all within `reach`, each an image of itself.

    So messages find their row.
    """
    atoms = bulk(symbol, "fcc", a=lattice_constant)
    species = np.array([expert.species.index(symbol)])
    return rows_from_images(atoms.positions, species, atoms.cell.array, atoms.pbc, reach)


def _deformed(expert: Expert, params: Params, rows: Neighborhood, F: Array) -> Array:
    """Energy of the atom of `_one_row` under the deformation F, `[3, 3]`."""
    return expert.atom_energies(params, rows._replace(displacement=rows.displacement @ F.T))[0]


def _uniformly_strained(expert: Expert, params: Params, rows: Neighborhood) -> Callable:
    """Energy of the atom and its first two derivatives, as a function of the strain s in exp(s)."""

    @jax.jit
    def compute(params, rows, strain):
        def energy(s):
            return _deformed(expert, params, rows, jnp.exp(s) * jnp.eye(3))

        def slope(s):
            return jax.jvp(energy, (s,), (jnp.ones_like(s),))

        (value, first), (_, second) = jax.jvp(slope, (strain,), (jnp.ones_like(strain),))
        return value, first, second

    return lambda strain: compute(params, rows, jnp.asarray(strain, float))


def _force_constants(expert: Expert, params: Params, symbol: str, position, cell) -> np.ndarray:
    """Phi_0j of a supercell, `[n_atoms, 3, 3]` eV/Å^2, second derivatives in u_0 and u_j."""
    n_atoms = len(position)
    species = np.full(n_atoms, expert.species.index(symbol))
    rows = rows_from_images(position, species, cell, (True, True, True), expert.cutoff)
    centers = np.arange(n_atoms)
    if expert.num_hops == 1:  # only rows that hold atom 0 feel it move
        centers = np.flatnonzero((centers == 0) | (rows.neighbor == 0).any(axis=1))
        rows = Neighborhood(*(leaf[centers] for leaf in rows))

    @jax.jit
    def along(params, rows, centers, direction):
        def energy(u):
            shift = u[jnp.where(rows.mask, rows.neighbor, 0)] - u[centers][:, None]
            moved = jnp.where(rows.mask[..., None], rows.displacement + shift, 1.0)
            return jnp.sum(expert.atom_energies(params, rows._replace(displacement=moved)))

        at_rest = jnp.zeros((n_atoms, 3))
        return jax.jvp(jax.grad(energy), (at_rest,), (at_rest.at[0].set(direction),))[1]

    constants = [
        np.asarray(along(params, rows, centers, e), float) for e in np.eye(3)
    ]  # d/du_0 of the gradient
    return np.stack(constants, axis=1)


def _path(n_points: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Wave vectors `[n_q, 3]` and the corners among them; X stands once."""
    stretches = [np.linspace(start, end, n_points) for start, end in _PATH]
    q = np.concatenate([stretches[0], *(stretch[1:] for stretch in stretches[1:])])
    return q, tuple(k * (n_points - 1) for k in range(len(_PATH) + 1))


def _phonopy():
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ImportError("phonons need phonopy: pip install 'moe_md[validate]'.") from error
    return Phonopy, PhonopyAtoms


def _check_symbol(expert: Expert, symbol: str) -> None:
    if symbol not in expert.species:
        raise ValueError(f"symbol must be one of the expert's species {expert.species}, got {symbol!r}.")
