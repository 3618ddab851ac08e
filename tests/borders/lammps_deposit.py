"""A LAMMPS run whose `fix deposit` adds an atom, for `test_engines_lammps.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "interfaces"))
import lammps_case

from moe_md.interfaces.lammps import attach


def main():
    """Attach a mixture, and run with `fix deposit`."""
    atoms = lammps_case.system()
    lmp = lammps_case.lammps_with(atoms)
    attach(
        lmp,
        lammps_case.checkpoint(),
        lammps_case.REGIONS["fixed"](atoms),
        ["Cu", "Pt"],
        skin=lammps_case.SKIN,
    )
    lmp.commands_string("""region inside block 4 6 4 6 4 6
    fix nve all nve
    fix gas all deposit 1 1 2 12345 region inside near 0.1
    run 5""")


if __name__ == "__main__":
    main()
