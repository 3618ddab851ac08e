"""Files that are written atomically, and read only if they are unchanged since; folders of one process.

The format is MessagePack of plain values and arrays; reading executes no code
from a file. A file is written under a temporary name and then renamed.
"""

import contextlib
import hashlib
import json
import os
import socket
import stat
import threading
import warnings
from collections.abc import Generator, Sequence
from io import FileIO
from pathlib import Path
from weakref import WeakValueDictionary

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAX_DEPTH = 32  # deepest nesting that is read
LOCK = ".moe_md.lock"  # in a folder of results: the number and the host of the process that writes there
_held: dict[Path, int] = {}  # threads by the folder that they hold
_own_files: WeakValueDictionary[tuple[int, int], FileIO] = WeakValueDictionary()  # by device and inode


def write(path, version: int, content: dict) -> None:
    """Write plain values and arrays, with their format version and their SHA-256.

    Args:
        path: file to write, in an existing folder.
        version: format version, stored as `format`.
        content: a dict of dicts, lists, numbers, text and arrays.

    Raises:
        OSError: the file cannot be written; a previous file is unchanged.
    """
    content = {"format": version, **content}
    write_atomic(path, _packed({**content, "sha256": _sha256(content)}))


def read(path, what: str, version: int, keys: Sequence[str], optional: Sequence[str] = ()) -> dict:
    """The content of a file written by `write`.

    The stored SHA-256 detects damage; it does not protect against tampering.
    Files of earlier versions have none and are read without this check.

    Args:
        path: the file.
        what: description of the expected file, for error messages.
        version: expected format version.
        keys: keys that the content must have, besides `format`.
        optional: keys that it may have.

    Returns:
        The content, with `format`.

    Raises:
        ValueError: the file cannot be read, has another format version, was
            changed after it was written, or has missing or unknown keys.
    """
    from flax.serialization import msgpack_restore

    path = Path(path)
    try:
        content = msgpack_restore(path.read_bytes())
        _check_plain(content)
        found = content["format"]
    except Exception as error:  # the decoder raises many types on invalid files
        raise ValueError(
            f"{path} must be {what}, but it cannot be read: {type(error).__name__}: {error}."
        ) from None
    if type(found) is not type(version) or found != version:
        raise ValueError(f"{path} must have {what.split()[-1]} format {version}, got {found!r:.80}.")
    digest = content.pop("sha256", None)
    if digest is not None and digest != _sha256(content):
        raise ValueError(f"{path} must be {what}, but its content has changed since it was written.")
    missing, unknown = set(keys) - set(content), set(content) - {"format", *keys, *optional}
    if missing or unknown:
        problem = (
            f"holds no {', '.join(sorted(missing))}" if missing else f"also holds {sorted(map(str, unknown))}"
        )
        raise ValueError(f"{path} must be {what}, but it {problem}.")
    return content


def write_atomic(path, content: bytes) -> None:
    """Write bytes so that `path` has either its old or its new content at any time.

    Raises:
        OSError: the new content cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = f"cannot be written, the previous file is unchanged: {error.strerror or error}"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def write_json(path, content: dict) -> None:
    """Write JSON atomically; arrays become lists."""
    write_atomic(path, (json.dumps(content, indent=2, default=plain) + "\n").encode())


def plain(value) -> object:
    """Lists of arrays, text of everything else: for `json.dumps(default=)`."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def signature(tree, *, dtypes: bool) -> dict | tuple | str:
    """Tree of the shapes of all arrays (with dtypes on request), and of the type names of other values."""
    if isinstance(tree, dict):
        return {key: signature(value, dtypes=dtypes) for key, value in tree.items()}
    if not hasattr(tree, "dtype"):
        return type(tree).__name__
    return (tuple(tree.shape), str(tree.dtype)) if dtypes else tuple(tree.shape)


def _packed(content: dict) -> bytes:
    """Content as MessagePack."""
    from flax.serialization import msgpack_serialize  # here, as it imports jax

    return msgpack_serialize(content)


def _sha256(content: dict) -> str:
    return hashlib.sha256(_packed(content)).hexdigest()


def _check_plain(value, depth: int = 0) -> None:
    """Raise on anything but plain values and arrays, or on nesting deeper than `MAX_DEPTH`."""
    import numpy as np

    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise ValueError(f"a key is {key!r:.80}")
            _check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif not isinstance(value, (np.ndarray, np.generic, str, bool, int, float, type(None))):
        raise ValueError(f"it holds {value!r:.80}")


# One writer at a time -----------------------------------------------------------


class InUseError(OSError):
    """A folder or a file that another process writes to."""


@contextlib.contextmanager
def locked(folder) -> Generator[Path]:
    """A folder of results that no other process may use until the end, also after errors.

    The system releases the lock of a process that was killed. Inside, the same thread may lock
    the folder again.

    Args:
        folder: made where it does not exist; removed again if it stays empty.

    Raises:
        InUseError: another process, or another thread, holds the folder.
        OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    path, is_new = folder.resolve(), not folder.exists()
    if _held.get(path) == threading.get_ident():
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path / LOCK, folder)
    _held[path] = threading.get_ident()
    try:
        yield folder
    finally:
        del _held[path]
        with contextlib.suppress(OSError):  # the folder may be gone
            os.unlink(path / LOCK)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def _acquire(path: Path, folder: Path) -> int:
    """Lock the lock file of a folder and write this process into it; returns its descriptor."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            system = _flock(lock)
            pid, host = _holder(lock)
            other_host = host not in ("", socket.gethostname())
            if system is False or (system is None and (other_host or _is_alive(pid))):
                raise InUseError(_in_use(folder, path, pid, host, certain=system is False))
            if not _is_the_file(lock, path):  # its last holder has just removed it
                os.close(lock)
                continue
            if other_host:
                warnings.warn(
                    f"{folder} was used by process {pid} on {host}, which did not end properly: taken over."
                    f" If it still runs, stop one of the two: file locks do not reach {host}.",
                    stacklevel=4,
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(lock)
            raise
        return lock


def lock_file(file: FileIO, path) -> None:
    """Hold an open file until it is closed; this process may open it again. Devices are not locked.

    Raises:
        InUseError: another process writes to the file.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return
    key = status.st_dev, status.st_ino
    own = _own_files.get(key)
    if _flock(file.fileno()) is False and (own is None or own.closed):
        raise InUseError(
            f"{path} must be written by one process at a time, but another one has it open: wait for it or"
            " stop it, or write to another file."
        )
    _own_files[key] = file


def _flock(descriptor: int) -> bool | None:
    """Whether the system locked a file, False where somebody else has it; None where it has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def _holder(lock: int) -> tuple[int, str]:
    """Process and host in a lock file; 0 and "" where there are none."""
    words = os.pread(lock, 500, 0).decode(errors="replace").split()
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdecimal() else (0, "")


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _in_use(folder: Path, path: Path, pid: int, host: str, *, certain: bool) -> str:
    who = f"process {pid} on {host}" if pid else "another process"
    remedy = "" if certain else f", or, if it has ended, remove {path}"
    return (
        f"{folder} must be written by one process at a time, but {who} uses it: wait for it or stop"
        f" it{remedy}, or choose another folder (--out)."
    )
