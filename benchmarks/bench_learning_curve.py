"""Learning curve: validation error against the number of labelled frames.

One pair is trained on nested shares of the training trajectories, with the same
number of steps, and validated on the same held-out trajectories every time: from
random parameters, or (`--start`) from a pair trained on the many frames of a less
accurate method. Where the curve still falls, more labels reduce the error. One line
of results per start and seed. The seed selects the held-out trajectories and the order
in which the others are added, each kind of frame in its proportion.
"""

import argparse
from collections.abc import Sequence

import harness
from ase.build import bulk

import moe_md as mm
from moe_md.data import PACKAGED, Dataset, load_dataset, split_by_group, summary
from moe_md.settings import TrainSettings
from moe_md.training.evaluation import describe

SHARES = (0.125, 0.25, 0.5, 1.0)


def share_of(dataset: Dataset, share: float, seed: int) -> Dataset:
    """A share of the trajectories of each kind, at least one; a larger share contains a smaller one.

    `split_by_group` holds out groups in an order that does not depend on the fraction.
    """
    if share >= 1.0:
        return dataset
    return split_by_group(dataset, validation_fraction=share, seed=seed + 1)[1]


def measure(arguments, start: mm.Checkpoint | None, seed: int) -> dict:
    """The record of one start and seed, a line of `results/learning_curve.jsonl`."""
    experts = start.experts if start else harness.small_experts(tiny=arguments.smoke)
    dataset = load_dataset(
        PACKAGED[arguments.data]() if arguments.data in PACKAGED else arguments.data, experts[0].species
    )
    train, validation = split_by_group(dataset, validation_fraction=arguments.validation_fraction, seed=seed)
    settings = TrainSettings(
        steps=arguments.steps,
        seed=seed,
        learning_rate=arguments.learning_rate_from_start if start else arguments.learning_rate,
        validate_every=max(1, arguments.steps // 8),
        save_every=arguments.steps,
        patience=8,
    )
    references = [bulk("Pt", a=arguments.lattice_constant)]
    points = []
    for share in arguments.shares:
        part = share_of(train, share, seed)
        model = mm.cotrain(experts, part, settings, references=references, validation=validation, start=start)
        at = next(h for h in model.record["history"] if h["step"] == model.record["best_step"])
        print(f"{len(part.frames)} frames: " + describe(at), flush=True)
        scores = {name: at[name] for name in ("expensive", "cheap", "mixed", "mismatch")}
        points.append(
            {
                "share": share,
                **{k: summary(part)[k] for k in ("frames", "groups", "atoms")},
                "best_step": at["step"],
                "scores": scores,
            }
        )
    return {
        "benchmark": "learning_curve",
        **harness.environment(),
        "smoke": arguments.smoke,
        "experts": [e.config for e in experts],
        "dtype": "float32",
        "data": arguments.data,
        "start": None
        if start is None
        else {"data": start.record["train"]["frames"], "steps": start.record["step"]},
        "seed": seed,
        "steps": arguments.steps,
        "validation": summary(validation),
        "points": points,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="ptco_pbe",
        help=f"extended XYZ file, or one of {', '.join(PACKAGED)}; default ptco_pbe",
    )
    parser.add_argument(
        "--start", help="checkpoint to begin with; default random parameters of the pair of `ptco-small`"
    )
    parser.add_argument(
        "--shares", type=float, nargs="+", default=list(SHARES), help="shares of the training trajectories"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--validation-fraction", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--learning-rate-from-start", type=float, default=2e-3)
    parser.add_argument("--lattice-constant", type=float, default=3.98, help="Å")
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--smoke", action="store_true", help="a tiny pair, a few steps, two shares")
    arguments = parser.parse_args(arguments)
    if arguments.smoke:
        vars(arguments).update(steps=8, shares=[0.125, 0.25])
    start = None if arguments.start is None else mm.load(arguments.start)
    for seed in arguments.seeds:
        harness.append(arguments.results, "learning_curve", measure(arguments, start, seed))


if __name__ == "__main__":
    main()
