"""The folder in which jax stores compiled programs for later processes."""

import os
import sys
from pathlib import Path


def default_folder() -> Path:
    """Folder in the user's cache folder, one for each version of jax."""
    from importlib.metadata import version

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "moe_md" / f"jax-{version('jax')}"


def use_compilation_cache(folder: str | os.PathLike | None = None) -> Path:
    """Store compiled programs in a folder, so that later processes need not compile them again.

    Sets the option `jax_compilation_cache_dir` of jax; call it before the first
    program is compiled. A folder set earlier, by the variable
    `JAX_COMPILATION_CACHE_DIR` or by jax's configuration, is not changed.

    Args:
        folder: default `default_folder()`. Its size is not limited; it may be
            deleted at any time.

    Returns:
        The folder in use.

    Source:
        docs.jax.dev, "Persistent compilation cache".
    """
    chosen = str(default_folder() if folder is None else folder)
    return Path(_set_where_unset("jax_compilation_cache_dir", chosen))


def quieten_cache_warnings() -> None:
    """Silence XLA's false warning that a cached program was compiled on another machine (jax issue 38445)."""
    _set_where_unset("jax_logging_level", "CRITICAL")


def _set_where_unset(name: str, value: str) -> str:
    """Set an option of jax unless it is set, and return its value.

    Before jax is imported, the option is set through its environment variable.
    """
    if "jax" not in sys.modules:
        return os.environ.setdefault(name.upper(), value)
    import jax

    if getattr(jax.config, name) in (None, "NOTSET"):
        jax.config.update(name, value)
    return getattr(jax.config, name)
