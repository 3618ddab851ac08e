"""Modules of jax-md, each imported when it is first used.

Importing jax-md starts a jax backend and takes 2.7 s (`jax_md.rigid_body` computes on import), after which
`jax.distributed.initialize()` fails and forked processes hang. So modules of this package write
`from moe_md import lazy_jax_md as jax_md` and `jax_md.simulate.nve` inside their functions.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_md import minimize as minimize
    from jax_md import simulate as simulate
    from jax_md import space as space
    from jax_md.nn import nequip as nequip

_HOME = {
    "minimize": "jax_md.minimize",
    "nequip": "jax_md.nn.nequip",
    "simulate": "jax_md.simulate",
    "space": "jax_md.space",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = module = importlib.import_module(_HOME[name])
    return module
