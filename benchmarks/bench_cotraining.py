"""Does agreement remove the ghost force, at no cost in accuracy?

Two trainings of one budget (steps, seed, data, batches) on the packaged PBE
frames: agreement weights zero, and not. Then a perfect crystal is cut in two,
each half given its expert: along (100), along (111), around a sphere, at the
lattice constant and 2 % to either side. By symmetry every force is zero; what
remains is the seam's own, the ghost force. Accuracy is the force error of both
experts on the validation frames. All of it is cross-validated by group: a small
set, a short training and chance in what an untrained seam happens to weigh make
single pairs of runs scatter. One line of results per fold.
"""

import argparse
from dataclasses import replace

import numpy as np

import harness
import moe_md as mm
from moe_md.analysis.seam import ghost_force_report
from moe_md.data import folds_by_group, load_dataset, ptco_pbe, summary
from moe_md.training.cotrain import Settings
from moe_md.training.evaluation import describe
from moe_md.training.losses import Weights

SPECIES, METAL = ("Pt", "C", "O"), "Pt"
STRAINS = (0.98, 1.0, 1.02)
SEAMS = ("100", "111", "sphere")


def two_experts(arguments) -> tuple:
    """A pair small enough to train twice in minutes."""
    expensive = mm.experts.allegro(
        SPECIES,
        arguments.cutoff,
        l_max=arguments.l_max,
        num_layers=arguments.layers,
        num_scalar_features=arguments.scalar_features,
        num_tensor_features=arguments.tensor_features,
        scalar_embed_mlp=(arguments.scalar_features,),
        allegro_mlp=(arguments.scalar_features,),
    )
    cheap = mm.experts.power_spectrum(
        SPECIES,
        arguments.cutoff,
        domain=(METAL,),
        l_max=arguments.cheap_l_max,
        num_channels=arguments.cheap_channels,
        hidden=(arguments.cheap_hidden, arguments.cheap_hidden),
    )
    return expensive, cheap


def train_and_score(weights: Weights, experts, train, validation, settings: Settings, lattice_constants) -> dict:
    """One training; its errors and its ghost forces."""
    model = mm.cotrain(experts, train, replace(settings, weights=weights), validation=validation)
    scores = model.record["history"][-1]
    print(describe(scores), flush=True)
    ghost = ghost_force_report(model, lattice_constants, symbol=METAL)
    return {
        "agree_energy": weights.agree_energy,
        "agree_partial_forces": weights.agree_partial_forces,
        "agree_stress": weights.agree_stress,
        "validation": {name: scores[name] for name in ("expensive", "cheap", "mixed", "mismatch")},
        "ghost_force_meV_per_A": ghost,
        "training_s": model.record["seconds"],
    }


def measure(arguments, fold: int) -> dict:
    """Everything a line of the results says."""
    dataset = load_dataset(arguments.data or ptco_pbe(), SPECIES)
    train, validation = folds_by_group(dataset, n_folds=arguments.folds, seed=0)[fold]
    settings = Settings(
        steps=arguments.steps,
        seed=fold,
        learning_rate=arguments.learning_rate,
        validate_every=arguments.steps,
        save_every=arguments.steps,
        metal=METAL,
        lattice_constant=arguments.lattice_constant,
    )
    with_agreement = Weights(
        agree_energy=arguments.agree_energy,
        agree_partial_forces=arguments.agree_partial_forces,
        agree_stress=arguments.agree_stress,
    )
    without = replace(with_agreement, agree_energy=0.0, agree_partial_forces=0.0, agree_stress=0.0)
    experts = two_experts(arguments)
    lattice_constants = [arguments.lattice_constant * strain for strain in STRAINS]
    runs = {
        name: train_and_score(weights, experts, train, validation, settings, lattice_constants)
        for name, weights in (("without", without), ("with", with_agreement))
    }
    return {
        "benchmark": "cotraining",
        **harness.environment(),
        "smoke": arguments.smoke,
        "experts": [e.config for e in experts],
        "dtype": "float32",
        "steps": arguments.steps,
        "fold": fold,
        "folds": arguments.folds,
        "train": summary(train),
        "validation": summary(validation),
        "lattice_constant": arguments.lattice_constant,
        "strains": list(STRAINS),
        "runs": runs,
        **compare(runs["without"], runs["with"]),
    }


def compare(without: dict, agreeing: dict) -> dict:
    """How many times smaller ghost forces are, and what that costs in accuracy."""

    def ghost(run: dict, seam: str) -> float:
        return max(run["ghost_force_meV_per_A"][seam]["max"])

    def force_error(run: dict, expert: str) -> float:
        return run["validation"][expert]["forces_meV_per_A"]

    ratios = {seam: ghost(without, seam) / ghost(agreeing, seam) for seam in SEAMS}
    return {
        "ghost_force_ratio": ratios,
        "smallest_ratio": min(ratios.values()),
        "force_error_change": {
            expert: force_error(agreeing, expert) / force_error(without, expert) - 1.0 for expert in ("expensive", "cheap")
        },
    }


def report(record: dict) -> str:
    """The result, for people."""
    runs = record["runs"]
    lines = [f"{record['steps']} steps, {record['train']['frames']} frames, fold {record['fold'] + 1} of {record['folds']}"]
    for seam, ratio in record["ghost_force_ratio"].items():
        before, after = (np.max(runs[name]["ghost_force_meV_per_A"][seam]["max"]) for name in ("without", "with"))
        lines.append(f"ghost force, {seam:6s}: {before:7.1f} -> {after:7.1f} meV/Å, {ratio:.1f} times smaller")
    for expert, change in record["force_error_change"].items():
        before, after = (runs[name]["validation"][expert]["forces_meV_per_A"] for name in ("without", "with"))
        lines.append(f"force error, {expert:9s}: {before:7.1f} -> {after:7.1f} meV/Å, {100 * change:+.0f} %")
    return "\n".join(lines)


def main() -> None:
    defaults = Weights()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="extended XYZ file; default the packaged PBE frames")
    parser.add_argument("--folds", type=int, default=3, help="of the cross-validation")
    parser.add_argument("--only", type=int, nargs="+", help="folds to run, from 0; default all. Also the seeds of training")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--lattice-constant", type=float, default=3.98, help="Å")
    parser.add_argument("--agree-energy", type=float, default=defaults.agree_energy)
    parser.add_argument("--agree-partial-forces", type=float, default=defaults.agree_partial_forces)
    parser.add_argument("--agree-stress", type=float, default=defaults.agree_stress)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å, of both experts")
    parser.add_argument("--l-max", type=int, default=2)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--scalar-features", type=int, default=32)
    parser.add_argument("--tensor-features", type=int, default=16)
    parser.add_argument("--cheap-l-max", type=int, default=4)
    parser.add_argument("--cheap-channels", type=int, default=16)
    parser.add_argument("--cheap-hidden", type=int, default=64)
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a tiny pair, a few steps")
    arguments = parser.parse_args()
    if arguments.smoke:
        tiny = dict(steps=2, l_max=1, scalar_features=8, tensor_features=4, cutoff=4.0)
        tiny |= dict(cheap_l_max=1, cheap_channels=4, cheap_hidden=8)
        vars(arguments).update(tiny)
    folds = range(arguments.folds) if arguments.only is None else arguments.only
    for fold in folds[:1] if arguments.smoke else folds:
        record = measure(arguments, fold)
        print(report(record), flush=True)
        harness.append(arguments.results, "cotraining", record)


if __name__ == "__main__":
    main()
