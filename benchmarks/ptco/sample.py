"""Make the unlabelled frames of both sets of Pt + CO data; `label.py` labels them.

    python sample.py pbe --out todo.xyz --clean 24 --bulk 24 --vacancy 12 --gas 6
    python sample.py fm --out fm.xyz [--model ptco]
    python sample.py fm-test --out fm-test.xyz [--model ptco]

Frames of one trajectory share `origin`; `kind` names the class of structures. Frames with
two atoms closer than `moves.CLOSEST` times the sum of their covalent radii are left out, as
an inaccurate potential may produce them.
"""

import argparse
from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.io import write
from foundation_model_frames import (
    fm_bulk,
    fm_contacts,
    fm_covered,
    fm_molecules,
    fm_slabs,
    test_families,
)
from moves import mover
from pbe_frames import pbe_frames, relaxed_on_sites, small_covered, small_test_families


def fm(arguments) -> None:
    """Frames for the foundation model."""
    rng = np.random.default_rng(arguments.seed)
    calc, share = mover(arguments.model), arguments.share
    families = (
        fm_bulk(rng, share),
        fm_slabs(rng, share),
        fm_molecules(rng, share),
        fm_contacts(rng, share),
        fm_covered(rng, share, calc),
    )
    _write(arguments.out, (trajectory for family in families for trajectory in family))


def fm_test(arguments) -> None:
    """Test frames for the foundation model."""
    rng = np.random.default_rng([arguments.seed, 1])
    _write(arguments.out, test_families(rng, arguments.share, mover(arguments.model)))


def pbe(arguments) -> None:
    """Frames for PBE."""
    rng = np.random.default_rng(arguments.seed)
    _write(arguments.out, pbe_frames(rng, arguments))
    if arguments.covered:
        _write(arguments.out, small_covered(rng, arguments), append=True)
    if arguments.sites:
        _write(arguments.out, relaxed_on_sites(rng, arguments), append=True)


def pbe_test(arguments) -> None:
    """Test frames for PBE."""
    rng = np.random.default_rng([arguments.seed, 2])
    _write(arguments.out, small_test_families(rng, mover(arguments.model)))


def _write(path, trajectories: Iterable[list[Atoms]], *, append: bool = False) -> None:
    """Write one trajectory at a time, so that labelling may begin before sampling ends."""
    sizes = []
    for n, frames in enumerate(f for f in trajectories if f):
        write(path, frames, format="extxyz", append=append or n > 0)
        sizes += map(len, frames)
    print(f"{len(sizes)} frames, {sum(sizes)} atoms in {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    sub = commands.add_parser("pbe", help="small cells, for density functional theory")
    sub.add_argument("--out", required=True)
    sub.add_argument("--clean", type=int, default=24, help="clean (111) slabs, 300 to 1200 K")
    sub.add_argument("--bulk", type=int, default=24, help="strained and rattled 4-atom cells")
    sub.add_argument("--vacancy", type=int, default=12, help="7 and 15 atoms of 8 and 16")
    sub.add_argument("--gas", type=int, default=6, help="CO bond lengths")
    sub.add_argument("--covered", type=int, default=0, help="trajectories of one or two CO on (111) slabs")
    sub.add_argument(
        "--sites", type=int, default=0, help="CO relaxed on fcc, hcp, bridge and top sites, two frames each"
    )
    sub.add_argument("--model", default="ptco-small", help="checkpoint for the dynamics of metal with CO")
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(run=pbe)

    for name, run, what in (
        ("fm", fm, "1 to 100 atoms, for a foundation model; about 2,000 frames"),
        ("fm-test", fm_test, "test sets for it, of other kinds; about 120 frames"),
        ("pbe-test", pbe_test, "test sets of these kinds for PBE, in small cells; at most 20 frames"),
    ):
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--out", required=True)
        sub.add_argument("--model", default="ptco", help="checkpoint for the dynamics of metal with CO")
        if run is not pbe_test:
            sub.add_argument("--share", type=float, default=1.0, help="share of these frames")
        sub.add_argument("--seed", type=int, default=0)
        sub.set_defaults(run=run)

    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
