"""Properties of a perfect fcc crystal under each expert, and the differences of two experts."""

import jax
import numpy as np

from moe_md.analysis.bulk import elastic_constants, equation_of_state, relax_fcc
from moe_md.analysis.phonons import import_phonopy, phonons
from moe_md.checkpoint import Checkpoint
from moe_md.experts.base import Expert, Params

EOS_STRAINS = np.linspace(-0.04, 0.04, 9)  # relative changes of the lattice constant
MIN_COMPARED_THZ = 0.3  # frequencies below it, next to Γ, have no meaningful relative difference


def fcc_report(checkpoint: Checkpoint, symbol: str = "Pt", *, guess: float | None = None) -> dict:
    """Properties of a perfect fcc crystal under every expert, and differences of the first two experts.

    Args:
        checkpoint: any number of experts.
        symbol: an element in the domain of every expert.
        guess: Å, an approximate lattice constant; default as `relax_fcc`.

    Returns:
        A dictionary that JSON can store, computed in float64:

        - `symbol`;
        - `experts`, for each expert in order `builder`, `lattice_constant_A`,
          `energy_eV_per_atom`, `bulk_modulus_GPa`, `C11_GPa`, `C12_GPa`, `C44_GPa`,
          `equation_of_state` (lattice constants within 4 % of equilibrium), `phonons`
          (`distance`, `labels`, `ticks`, `frequencies_THz`) and `frequencies_THz` at
          `X`, `K` and `L`, each expert at its own lattice constant;
        - `differences` of the second expert from the first, None for one expert: in
          percent `lattice_constant`, `bulk_modulus`, `C11`, `C12`, `C44`,
          `phonons_rms` and `phonons_max` (over frequencies of at least 0.3 THz under
          the first expert), and `energy_meV_per_atom`.

    Raises:
        ValueError: the element is outside the domain of an expert, or as `relax_fcc`.
        ImportError: phonopy is not installed.
    """
    for number, expert in enumerate(checkpoint.experts):
        if symbol not in expert.allowed_species:
            raise ValueError(
                "symbol must be in the domain of every expert, "
                f"{expert.allowed_species} of expert {number}, got {symbol!r}."
            )
    import_phonopy()
    with jax.enable_x64(True):
        pairs = zip(checkpoint.experts, checkpoint.params, strict=True)
        properties = [_properties(expert, params, symbol, guess) for expert, params in pairs]
    differences = _differences(*properties[:2]) if len(properties) > 1 else None
    return {"symbol": symbol, "experts": properties, "differences": differences}


def _properties(expert: Expert, params: Params, symbol: str, guess: float | None) -> dict:
    """The entry of one expert in `experts` of `fcc_report`."""
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
    """Entry `differences` of `fcc_report`: in percent of the first expert's value, energy in meV per atom."""

    def percent(key: str) -> float:
        return 100 * (second[key] / first[key] - 1)

    f_1, f_2 = (np.array(entry["phonons"]["frequencies_THz"]) for entry in (first, second))
    compared = f_1 >= MIN_COMPARED_THZ
    relative = 100 * (f_2[compared] / f_1[compared] - 1)
    return {
        "lattice_constant": percent("lattice_constant_A"),
        "bulk_modulus": percent("bulk_modulus_GPa"),
        **{name: percent(f"{name}_GPa") for name in ("C11", "C12", "C44")},
        "phonons_rms": float(np.sqrt(np.mean(relative**2))),
        "phonons_max": float(np.abs(relative).max()),
        "energy_meV_per_atom": 1000 * (second["energy_eV_per_atom"] - first["energy_eV_per_atom"]),
    }
