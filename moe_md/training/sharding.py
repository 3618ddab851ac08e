"""Training on several devices: each has a share of the rows of every batch.

Parameters and optimiser are on all of them, and every device takes the same step.
What costs is done row by row, the networks and their derivatives, so rows are what
is shared out: a batch is padded to a multiple of the number of devices, and cut
along its rows whatever frame they belong to. Devices then add up what few numbers
the loss is made of (energies and virials of frames, forces on atoms) and the
gradients of the parameters. Batches are those of one device, and so are losses,
but for the order of sums.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_md.data.batching import Batch
from moe_md.neighbors.rows import Neighborhood

ROWS = "rows"  # the axis of the mesh


class Placement(NamedTuple):
    """Where things of a training are."""

    mesh: Mesh | None  # None: one device, wherever jax puts things
    state: Callable  # (pytree) -> the same on every device
    batch: Callable  # (Batch) -> padded, its rows in equal pieces, all else on every device; None stays None
    compiled: Callable  # (function) -> jitted; what it returns is on every device


def on_devices(devices: Sequence | None) -> Placement:
    """Places for a training.

    Args:
        devices: those of jax to share rows of batches; None for one, wherever
            jax puts things.

    Raises:
        ValueError: there is none, one twice, or something else.
    """
    if devices is None:
        return Placement(None, lambda tree: tree, lambda batch: batch, jax.jit)
    mesh = Mesh(np.array(checked(devices)), (ROWS,))
    everywhere, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(ROWS))

    def put(batch: Batch | None) -> Batch | None:
        if batch is None:
            return None
        batch = padded(batch, mesh.size)
        places = Batch._make(cut if name == "rows" else everywhere for name in Batch._fields)
        return jax.device_put(batch, places)

    return Placement(
        mesh,
        lambda tree: jax.device_put(tree, everywhere),
        put,
        lambda fn: jax.jit(fn, out_shardings=everywhere),
    )


def each_its_rows(fn: Callable, mesh: Mesh | None, *, add: bool = False) -> Callable:
    """A function of parameters and rows, on every device of a mesh with its own rows.

    Compilers left to themselves gather the rows of small networks on every
    device; so what is done where is said here. The gradient of the parameters is
    that of all rows, added up over devices.

    Args:
        fn: `(params, pytree of [n_rows, ...]) -> pytree`.
        mesh: None for the function as it is.
        add: whether what the function returns is summed over devices, else it
            is of rows.
    """
    if mesh is None:
        return fn

    def summed(params, content):
        return jax.lax.psum(fn(params, content), ROWS)

    everywhere, cut = PartitionSpec(), PartitionSpec(ROWS)
    # Unchecked where an expert may scan or branch, which does not say what varies.
    return jax.shard_map(
        summed if add else fn,
        mesh=mesh,
        in_specs=(everywhere, cut),
        out_specs=everywhere if add else cut,
        check_vma=add,
    )


def checked(devices: Sequence) -> list:
    """The devices as a list.

    Raises:
        ValueError: there is none, one twice, or something else.

    >>> checked(8)
    Traceback (most recent call last):
    ValueError: devices must be jax's devices, such as jax.devices(), got 8.
    """
    if not isinstance(devices, (list, tuple, np.ndarray)) or not all(
        isinstance(d, jax.Device) for d in devices
    ):
        raise ValueError(f"devices must be jax's devices, such as jax.devices(), got {devices!r:.200}.")
    if len(devices) == 0 or len(set(devices)) != len(devices):
        raise ValueError(
            f"devices must be at least one, and each only once, got {[str(d) for d in devices]}."
        )
    foreign = [str(d) for d in devices if d.process_index != jax.process_index()]
    if foreign:
        raise ValueError(f"devices must be of this process, got {foreign} of others.")
    return list(devices)


def padded(batch: Batch, multiple: int) -> Batch:
    """A batch with rows of padding, to a multiple of a number.

    >>> from moe_md.data.batching import collate
    >>> from moe_md.data.structures import fcc_supercell
    >>> batch = padded(collate([fcc_supercell("Pt", 3.98, 1)], ("Pt",), 3.0), 3)
    >>> batch.row_mask.tolist(), int(batch.rows.neighbor.max())
    ([True, True, True, True, False, False], 6)
    """
    n_rows, n_frames = len(batch.row_mask), len(batch.n_atoms)
    more = -n_rows % multiple
    if more == 0:
        return batch

    def longer(x: jax.Array | np.ndarray, fill) -> np.ndarray:
        return np.concatenate([x, np.full((more, *x.shape[1:]), fill, x.dtype)])

    rows = batch.rows
    return batch._replace(
        rows=Neighborhood(
            displacement=longer(rows.displacement, 1.0),
            mask=longer(rows.mask, False),
            center_species=longer(rows.center_species, 0),
            neighbor_species=longer(rows.neighbor_species, 0),
            neighbor=longer(
                np.where(rows.mask, rows.neighbor, n_rows + more).astype(rows.neighbor.dtype), n_rows + more
            ),
        ),
        frame=longer(batch.frame, n_frames),
        row_mask=longer(batch.row_mask, False),
        forces=longer(batch.forces, 0.0),
        forces_mask=longer(batch.forces_mask, False),
    )
