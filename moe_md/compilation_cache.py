"""Where compiled programs are kept between processes."""

import os
import sys
from pathlib import Path


def default_folder() -> Path:
    """The user's cache folder, one for each version of jax."""
    from importlib.metadata import version

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "moe_md" / f"jax-{version('jax')}"


def use_compilation_cache(folder: str | os.PathLike | None = None) -> Path:
    """Keep compiled programs in a folder, so that the next process need not compile them again.

    Sets jax's own option; call it before the first program is compiled. A
    folder that jax was told of before, by `JAX_COMPILATION_CACHE_DIR` or its
    configuration, stays.

    Args:
        folder: default `default_folder()`. It grows without bound: delete it at any time.

    Returns:
        The folder in use.

    Source:
        docs.jax.dev, "Persistent compilation cache".
    """
    chosen = str(default_folder() if folder is None else folder)
    return Path(_set_where_unset("jax_compilation_cache_dir", chosen))


def quieten_cache_warnings() -> None:
    """Silence XLA's warning of another machine about programs kept on this one (jax issue 38445)."""
    _set_where_unset("jax_logging_level", "CRITICAL")


def _set_where_unset(name: str, value: str) -> str:
    """Set an option of jax, by the environment where jax is not loaded yet; its value in force."""
    if "jax" not in sys.modules:
        return os.environ.setdefault(name.upper(), value)
    import jax

    if getattr(jax.config, name) in (None, "NOTSET"):
        jax.config.update(name, value)
    return getattr(jax.config, name)
