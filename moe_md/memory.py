"""Memory of the device: whether arrays fit, and what to change where they did not."""

import contextlib
import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path

GIB = 2**30
WORDS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")  # in messages of XLA and its allocators


@contextlib.contextmanager
def naming(remedy: str) -> Generator[None]:
    """Turn an out-of-memory error of the block into a `MemoryError` of one line.

    Args:
        remedy: what to change; names the argument and its value.

    >>> with naming("lower chunk_size, now 64"):
    ...     raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
    Traceback (most recent call last):
    MemoryError: memory must hold an evaluation, but it is exhausted (99 bytes): lower chunk_size, now 64.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        raise MemoryError(
            f"memory must hold an evaluation, but it is exhausted{_size(error)}: {remedy}."
        ) from error


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out and not yet, as that of `naming` does, what to change."""
    if isinstance(error, MemoryError):
        return "but it is exhausted" not in str(error)
    return any(word in str(error) for word in WORDS)


def of_chunk_size(chunk_size: int | None) -> str:
    """The remedy where rows are computed in chunks; None for an energy whose chunks are not known."""
    if chunk_size is None:
        return "lower the chunk_size of the energy, or use float32 or fewer atoms"
    return f"lower chunk_size, now {chunk_size}, or use float32 or fewer atoms"


def check_lists(n_rows: int, max_neighbors: Sequence[int], itemsize: int) -> None:
    """Raise `ValueError` where neighbour lists, with the rows made from them, cannot fit.

    Counted are the indices of each list, and for the longest one displacements and
    the gradient with respect to them: less than a step needs.

    Args:
        n_rows: atoms.
        max_neighbors: columns of each list.
        itemsize: bytes of a number of the positions.
    """
    needed = n_rows * (4 * sum(max_neighbors) + 6 * itemsize * max(max_neighbors))
    if needed < GIB // 8:  # fits anywhere
        return
    free, where = free_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"neighbour lists must fit into memory, but {n_rows} atoms with {max(max_neighbors)} neighbours "
            f"of {itemsize} bytes need {needed / GIB:.1f} GiB and {where} has {free / GIB:.1f} GiB free: use "
            "fewer atoms, float32, a smaller dr_threshold, or several devices (moe_md.distributed)."
        )


def free_bytes() -> tuple[int | None, str]:
    """Free memory of jax's default device, or of this computer where the device tells none; and its name."""
    import jax

    device = getattr(jax.config, "jax_default_device", None) or jax.local_devices()[0]
    stats = device.memory_stats() if hasattr(device, "memory_stats") else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), str(device)
    return _free_host_bytes(), "this computer"


def _free_host_bytes() -> int | None:
    """What Linux can give without swapping; elsewhere all that is installed, or None."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _size(error: BaseException) -> str:
    """The number of bytes that a message of XLA names, in brackets."""
    found = re.search(r"allocat\w* (?:request for )?(\d[\d.]* ?\w+)", str(error))
    return f" ({found[1]})" if found else ""
