"""Atoms of one rank of LAMMPS, and whether its ghosts extend as far as forces need."""

import numpy as np
from jaxtyping import Float, Int, Shaped

N_PROBES = 16  # owned atoms whose ghosts are counted


def copy_of_atoms(lmp, name: str, n: int) -> Shaped[np.ndarray, "{n} ..."]:
    """A copy of LAMMPS's per-atom array `x` (`[n, 3]`), `id` or `type` (`[n]`), also where `n` is 0."""
    if n:
        return np.array(lmp.numpy.extract_atom(name, nelem=n))
    return np.zeros((0, 3)) if name == "x" else np.zeros(0, int)


def check_ghosts(
    lmp,
    comm,
    position: Float[np.ndarray, "atoms 3"],
    ids: Int[np.ndarray, " atoms"],
    n_local: int,
    distance: float,
) -> None:
    """Raise `ValueError` where owned atoms lack ghosts within a distance.

    Probes are the atoms nearest to the faces of the rank's domain and some others.
    Images of all atoms of the cell are counted around them, and compared with the
    atoms and ghosts that the rank holds.

    Args:
        lmp: a `lammps.lammps`.
        comm: its communicator (mpi4py); every rank must call.
        position: Å, of owned atoms, then of ghosts.
        ids: LAMMPS's.
        n_local: number of owned atoms.
        distance: Å.
    """
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    cell = np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]])
    all_owned = np.concatenate(comm.allgather(position[:n_local]))
    if n_local == 0:
        return
    inverse, pbc = np.linalg.inv(cell), np.asarray(periodic, bool)
    scaled = position[:n_local] @ inverse
    spaced = np.linspace(0, n_local - 1, N_PROBES - 6).astype(int)
    probes = np.unique([*scaled.argmin(axis=0), *scaled.argmax(axis=0), *spaced])
    # Lattice vectors that may bring any image of an atom within the distance.
    spread = np.ptp(all_owned @ inverse, axis=0)
    most = np.where(pbc, np.ceil(distance * np.linalg.norm(inverse, axis=0) + spread), 0).astype(int)
    multiples = np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")
    shifts = np.stack(multiples, axis=-1).reshape(-1, 3) @ cell
    low_corner, high_corner = position[probes].min(0) - distance, position[probes].max(0) + distance
    expected = np.zeros(len(probes), int)
    for shift in shifts:
        images = all_owned + shift
        inside = ((images >= low_corner) & (images <= high_corner)).all(axis=1)
        separation = np.linalg.norm(images[inside][None] - position[probes][:, None], axis=-1)
        expected += (separation < distance - 1e-6).sum(axis=1)
    separation = np.linalg.norm(position[None] - position[probes][:, None], axis=-1)
    found = (separation < distance - 1e-6).sum(axis=1)
    worst = int(np.argmax(expected - found))
    if expected[worst] > found[worst]:
        raise ValueError(
            f"comm_modify cutoff must be at least {distance:.3f} Å, halo and skin: "
            f"atom {ids[probes[worst]]} lacks {expected[worst] - found[worst]} ghosts within that distance, "
            "and forces would be wrong. Keep the cutoff that `attach` sets."
        )
