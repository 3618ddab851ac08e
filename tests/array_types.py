"""Array types of moe_md, as `Float[Array, "atoms 3"]`, are checked in every call that the tests make.

`install()` is called before moe_md is imported. jaxtyping binds the names of axes within a call; beartype
compares. Calls are checked when they return: moe_md refuses wrong input itself, and tests want its message.
"""

import doctest
import inspect
import typing
from collections.abc import Callable

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook


def install() -> None:
    """Check the array types of all modules of moe_md that are imported from now on."""
    install_import_hook("moe_md", f"{__name__}.check")
    doctest.DocTestFinder._from_module = _from_module


def check(fn: Callable) -> Callable:
    """What jaxtyping calls for a stand-in of each function: the stand-in with its array types checked.

    jaxtyping calls one stand-in before the function and one, which has its result too, after it. The first
    has the return type `Any`, and accepts everything here.
    """
    hints = {name: hint for name, hint in fn.__annotations__.items() if has_array(hint)}
    if inspect.signature(fn).return_annotation is typing.Any or not hints:
        return lambda *args, **kwargs: None
    fn.__annotations__ = hints
    return beartype(fn)


def has_array(hint) -> bool:
    """Whether a type is an array type of jaxtyping, or contains one.

    >>> from jaxtyping import Array, Float
    >>> has_array(Float[Array, "atoms 3"] | None), has_array(dict[str, float])
    (True, False)
    """
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(has_array, typing.get_args(hint)))


_is_of_module = doctest.DocTestFinder._from_module


def _from_module(self, module, value) -> bool:
    """As doctest's, for the function that a check wraps: doctest leaves out functions of other modules."""
    return _is_of_module(self, module, inspect.unwrap(value) if inspect.isfunction(value) else value)
