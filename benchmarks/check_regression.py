"""Has the code become slower than it was? Compares ratios, which depend little on the machine.

    python benchmarks/check_regression.py [--record] [--smoke]

The ratios are the share of its roofline that each expert reaches (`bench_roofline.py`) and the share of its
bound that the mixture reaches (`bench_mixture.py`, a few thousand atoms). Both terms of a ratio are measured
in the same run. A ratio below `--least` times the recorded one fails, after a second measurement. `--record`
appends a line to `results/regression.jsonl`; the newest line of the same platform and size is the reference.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence

import bench_mixture
import bench_roofline
import harness

SHARES = (0.1, 0.25)


def ratios(smoke: bool) -> dict[str, float]:
    """Measure the ratios, by name."""
    model = harness.two_experts("ptco", tiny=smoke)
    rows, repeats = (8, 3) if smoke else (64, 9)
    found = {}
    for expert, params in zip(model.experts, model.params):
        *_, row = bench_roofline.roofline(expert, params, Namespace(rows=rows, repeats=repeats, skin=0.4))
        found[f"{row['expert']}: of its roofline"] = row["reached"]
    options = Namespace(
        checkpoint="ptco",
        random=False,
        tiny=smoke,
        atoms=256 if smoke else 4000,
        shares=SHARES,
        spheres=(),
        repeats=repeats,
        chunk_size=64,
        smoke=smoke,
    )
    for row in bench_mixture.measure(options)["rows"]:
        if row["name"].startswith("mixture"):
            found[f"{row['name']}: of its bound"] = row["fraction_of_bound"]
    return found


def fallen(now: dict[str, float], before: dict[str, float], least: float) -> list[str]:
    """Names of ratios that are missing, or smaller than `least` times the recorded ones."""
    return [name for name, value in before.items() if not now.get(name, 0.0) >= least * value]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", action="store_true", help="record the ratios, as the reference of later runs"
    )
    parser.add_argument(
        "--least",
        type=float,
        help="smallest allowed fraction of the recorded ratio; default 0.8, with --smoke 0.3",
    )
    parser.add_argument("--results", default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny experts and few atoms: tests the program, not the speed"
    )
    arguments = parser.parse_args(arguments)
    least = (0.3 if arguments.smoke else 0.8) if arguments.least is None else arguments.least
    environment = harness.environment()
    same = [
        r
        for r in harness.read(arguments.results, "regression")
        if r["smoke"] == arguments.smoke and r["platform"] == environment["platform"]
    ]
    if arguments.record:
        now = ratios(arguments.smoke)
        harness.append(
            arguments.results,
            "regression",
            {"benchmark": "regression", **environment, "smoke": arguments.smoke, "ratios": now},
        )
        print(now)
        return
    if not same:
        sys.exit(f"no ratios are recorded for {environment['platform']}: run with --record first")
    before = same[-1]["ratios"]
    for _ in range(2):
        now = ratios(arguments.smoke)
        for name, value in before.items():
            print(f"{name}: {now.get(name, 0.0):.2f}, was {value:.2f}")
        if not (names := fallen(now, before, least)):
            return
    sys.exit(f"below {least:g} of the ratios recorded at {same[-1]['commit'][:9]}: {', '.join(names)}")


if __name__ == "__main__":
    main()
