"""Errors of a pair against its labels, and differences of its experts.

    python benchmarks/bench_accuracy.py CHECKPOINT --data ptco_fm

Errors of each expert, and of the mixture whose expensive expert owns the adsorbates and
the two top layers, on the validation frames of the training and on the test sets of the
same labels: a larger cell, higher temperatures, another coverage, other steps. Then the
crystal of each expert, ghost forces and stress jumps. Each figure has a target.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import harness
import numpy as np
from ase.build import bulk

import moe_md as mm
from moe_md import units
from moe_md.analysis import errors
from moe_md.analysis.crystal_report import crystal_report
from moe_md.analysis.environments import top_layers
from moe_md.analysis.expert_boundary import ghost_force_report, stress_jump
from moe_md.data import PACKAGED, Frame, dataset_from_frames, load_dataset, split_by_group

METAL, LAYERS = "Pt", 2
STRAINS = (0.98, 0.99, 1.0, 1.01, 1.02)
# Targets: differences of the experts in %, ghost force in meV/Å, stress jump in GPa.
TARGETS = {
    "lattice_constant": 0.05,
    "bulk_modulus": 1.0,
    "C_ij": 3.0,
    "phonons": 2.0,
    "ghost_force": 5.0,
    "stress_jump": 0.2,
}


class Part(NamedTuple):
    """A set of frames, evaluated together."""

    name: str
    contains: Callable[[Frame], bool]
    target: dict[str, float] | None = None  # force errors of the experts, meV/Å


def _kinds(*starts: str, but: str = "none") -> Callable[[Frame], bool]:
    """True for frames whose kind has one of these prefixes and whose group does not contain `but`."""
    return lambda f: f.kind.startswith(starts) and f"-{but}-" not in f.group


TESTS = tuple(
    Part(f"test: {name}", _kinds(f"test-{name.replace(' ', '-')}"))
    for name in ("larger cell", "hotter bulk", "hotter co", "unseen coverage", "unseen step")
)
PARTS = {
    "ptco_fm": (
        Part("bulk to 900 K", _kinds("bulk-hot", but="1200K"), {"expensive": 20.0, "cheap": 40.0}),
        Part("strained bulk", _kinds("bulk-strained")),
        Part("vacancies, interstitials", _kinds("bulk-vacancy", "bulk-interstitial")),
        Part("clean faces to 900 K", _kinds("slab", but="1200K")),
        Part("CO/Pt(111) to 600 K", _kinds("co-111", but="900K"), {"expensive": 50.0}),
        Part("CO on other faces", _kinds("co-100", "co-110", "co-211")),
    ),
    "ptco_fm_test": TESTS,
    "ptco_pbe_test": TESTS,
    "ptco_pbe": (
        Part("bulk", _kinds("bulk"), {"expensive": 50.0}),
        Part("clean Pt(111)", _kinds("slab-clean", "slab-metal")),
        Part("CO/Pt(111)", _kinds("slab-co"), {"expensive": 100.0}),
    ),
}


def held_out(model: mm.Checkpoint, name: str) -> list[Frame]:
    """Packaged frames that were not used in training."""
    dataset = load_dataset(PACKAGED[name](), model.experts[0].species)
    if name.endswith("_test"):
        return list(dataset.frames)
    settings = model.settings
    return list(
        split_by_group(
            dataset,
            validation_fraction=settings["validation_fraction"],
            seed=settings.get("split_seed", settings["seed"]),
        )[1].frames
    )


def errors_of(compared: Sequence[errors.ComparedFrame]) -> dict:
    """Errors of each expert, and of mixture and expensive expert inside and outside the region."""
    report = errors.report(compared, lambda frame: np.full(len(frame.symbols), "bulk"))["all"]
    divided = [c for c in compared if c.has_expert_boundary]  # frames with atoms on both experts
    return {
        "frames": len(compared),
        **{
            who: {
                name: report[who][name] and report[who][name]["rmse"]
                for name in ("energy_meV_per_atom", "forces_meV_per_A")
            }
            for who in ("expensive", "cheap")
        },
        **{
            where: {
                who: _rms(
                    [getattr(c, who).forces - c.frame.forces for c in divided],
                    [c.owner == owner for c in divided],
                )
                for who in ("expensive", "mixed")
            }
            for owner, where in enumerate(("inside", "outside"))
        },
    }


def _rms(differences: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> float | None:
    squares = [np.square(d[pick]).ravel() for d, pick in zip(differences, chosen)]
    return 1e3 * float(np.sqrt(np.mean(np.concatenate(squares)))) if sum(map(len, squares)) else None


def agreement(model: mm.Checkpoint, *, smoke: bool) -> dict:
    """Differences of the two experts' crystals in %, their ghost force in meV/Å and stress jump in GPa."""
    crystal = None if smoke else crystal_report(model, model.references[0])
    a = 3.98 if smoke else crystal["experts"][0]["lattice_constant_A"]
    atoms, strains = bulk(METAL, "fcc", a=a), [strain - 1 for strain in STRAINS]
    found = {
        "ghost_force": ghost_force_report(model, atoms, strains)["worst"],  # meV/Å
        "stress_jump": stress_jump(model, atoms, strains)["worst"],  # GPa
    }
    if smoke:
        return found
    differ = {name: abs(value) for name, value in crystal["differences"].items()}
    names = ("lattice_constant_A", "bulk_modulus_GPa", "C11_GPa", "C12_GPa", "C44_GPa")
    return {
        **found,
        "lattice_constant": differ["lattice_constant"],
        "bulk_modulus": differ["bulk_modulus"],
        "C_ij": max(differ[name] for name in ("C11", "C12", "C44")),
        "phonons": differ["phonons_rms"],
        "crystal": [{name: expert[name] for name in names} for expert in crystal["experts"]],
    }


def crystal_of_labels(frames: Sequence[Frame]) -> dict | None:
    """Lattice constant and elastic constants from the labels themselves.

    They follow from the stresses of cells under positive and negative strains (`sample.py pbe-test`). The
    lattice constant is that of the cells, corrected for their residual pressure. None without such frames.
    """
    stress = {f.group: f.stress / units.GPa for f in frames if f.kind == "test-elastic"}
    if not stress:
        return None
    along, shear = (
        (stress[f"elastic-{part}+0.01"] - stress[f"elastic-{part}-0.01"]) / 0.02 for part in ("xx", "yz")
    )
    C11, C12, C44 = (
        along[0, 0],
        0.5 * (along[1, 1] + along[2, 2]),
        shear[1, 2],
    )  # 0.01 is the total shear angle of yz
    modulus = (C11 + 2 * C12) / 3
    residual = sum(map(np.trace, stress.values())) / 3 / len(stress)
    a = next(f.cell[1, 1] for f in frames if f.group == "elastic-xx+0.01") * (1 - residual / 3 / modulus)
    return {
        "lattice_constant_A": a,
        "bulk_modulus_GPa": modulus,
        "C11_GPa": C11,
        "C12_GPa": C12,
        "C44_GPa": C44,
    }


def measure(arguments) -> dict:
    """The record of one checkpoint, a line of `results/accuracy.jsonl`."""
    model = mm.load(arguments.checkpoint)
    names = (arguments.data, f"{arguments.data}_test")
    rule = top_layers(model.experts[1].allowed_species, LAYERS, arguments.lattice_constant / np.sqrt(2))
    parts = []
    for name in names:
        compared = errors.compare(
            model, dataset_from_frames(held_out(model, name), model.experts[0].species), rule
        )
        for part in PARTS[name]:
            chosen = [c for c in compared if part.contains(c.frame)]
            if not chosen:
                continue
            found = errors_of(chosen)
            parts.append({"name": part.name, "wanted": part.target or {}, **found})
            print(
                part.name,
                {who: found[who] for who in ("expensive", "cheap", "inside", "outside")},
                flush=True,
            )
    return {
        "benchmark": "accuracy",
        **harness.environment(),
        "smoke": arguments.smoke,
        "dtype": "float32",  # dtype of the errors; crystals, ghost forces and stress jumps are in float64
        "checkpoint": arguments.name or str(arguments.checkpoint),
        "steps": model.record.get("best_step") or model.record["step"],
        "train": model.record["train"],
        "data": arguments.data,
        "parts": parts,
        "agreement": agreement(model, smoke=arguments.smoke),
        "crystal_of_labels": crystal_of_labels(held_out(model, f"{arguments.data}_test")),
        "wanted": TARGETS,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="name or path, trained on the labels named")
    parser.add_argument(
        "--data", choices=("ptco_fm", "ptco_pbe"), default="ptco_pbe", help="labels to compare with"
    )
    parser.add_argument("--name", help="name of the pair in the table; default the checkpoint's")
    parser.add_argument("--lattice-constant", type=float, default=3.98, help="Å; defines the layers of atoms")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="no crystal")
    arguments = parser.parse_args(arguments)
    record = measure(arguments)
    print({name: record["agreement"].get(name) for name in TARGETS})
    harness.append(arguments.results, "accuracy", record)


if __name__ == "__main__":
    main()
