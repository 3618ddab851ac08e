"""A checkpoint of the package from a training of `bench_materials.py`, with its errors on test frames.

python benchmarks/ship.py --data DIR --run RUNS/Si-0 --material Si --name si
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import harness
import materials_data

import moe_md as mm
from moe_md.training.evaluation import evaluate_by_kind

PARTS = ("expensive", "cheap", "mixed", "mismatch")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the frames")
    parser.add_argument("--run", type=Path, required=True, help="folder of the training")
    parser.add_argument("--material", required=True, help="of `materials/published.toml`")
    parser.add_argument("--name", required=True, help="of the checkpoint")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "moe_md" / "checkpoints")
    parsed = parser.parse_args(arguments)
    _, held_out = materials_data.frames(materials_data.material(parsed.material), parsed.data, test=True)
    model = mm.load(parsed.run / "checkpoint.msgpack")
    scores = evaluate_by_kind(model.experts, model.params, held_out)["all"]
    record = {**model.record, "held_out": {"frames": scores["frames"], **{p: scores[p] for p in PARTS}}}
    path = parsed.out / f"{parsed.name}.msgpack"
    mm.save(path, model._replace(record=record))
    print(f"wrote {path}: {scores}")


if __name__ == "__main__":
    main()
