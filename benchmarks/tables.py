"""Tables of the README and of the pages in docs/, printed from the results.

    python benchmarks/tables.py            prints every table
    python benchmarks/tables.py --write    writes them into the pages

A table stands in a page between `<!-- table: name -->` and `<!-- /table -->`, below the command
that measures its numbers. The newest record of each device is printed; smoke runs are not.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import harness
from tables_cheap import boundary, cheap_expert, cheap_widths, skin, step
from tables_defects import adsorbate, defects
from tables_dynamics import gradient, lyapunov, moving, respa, soak
from tables_materials import materials
from tables_models import accuracy, cotraining, learning_curve, pairs, ptco, public_dft, shipped
from tables_speed import ase, halo, mixture, peers, regions, roofline, scale, training

PAGES = tuple(
    harness.ROOT / page
    for page in ("README.md", "docs/results.md", "docs/gradients.md", "docs/howto/shipped_pairs.md")
)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)

# Each makes the text between the markers from the folder of results.
TABLES: dict[str, Callable[[Path], str]] = {
    "pairs": pairs,
    "shipped": shipped,
    "mixture": mixture,
    "peers": peers,
    "scale": scale,
    "training": training,
    "moving": moving,
    "respa": respa,
    "roofline": roofline,
    "boundary": boundary,
    "step": step,
    "skin": skin,
    "cheap_widths": cheap_widths,
    "cheap_expert": cheap_expert,
    "gradient": gradient,
    "lyapunov": lyapunov,
    "regions": regions,
    "cotraining": cotraining,
    "learning_curve": learning_curve,
    "accuracy": accuracy,
    "ptco": ptco,
    "public_dft": public_dft,
    "materials": materials,
    "defects": defects,
    "adsorbate": adsorbate,
    "soak": soak,
    "halo": halo,
    "ase": ase,
}


def fill(text: str, folder: Path = harness.RESULTS) -> str:
    """A page with every marked table printed from the results.

    Raises:
        ValueError: a marker names no table.
    """

    def printed(match: re.Match) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"table must be one of {sorted(TABLES)}, got {name!r}.")
        return f"{match[1]}{TABLES[name](folder)}\n{match[3]}"

    return MARKED.sub(printed, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the JSON lines")
    parser.add_argument("--write", action="store_true", help="rewrite the pages between their markers")
    arguments = parser.parse_args()
    if arguments.write:
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf-8"), arguments.results), encoding="utf-8")
        return
    print("\n\n".join(f"## {name}\n\n{table(arguments.results)}" for name, table in TABLES.items()))


if __name__ == "__main__":
    main()
