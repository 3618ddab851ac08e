"""Text on terminals that cannot show every character, such as those of `LC_ALL=C`.

Characters that the encoding of a stream lacks are replaced by letters that mean the same (Å by A), others by
their number, as Python does it on stderr.
"""

import codecs
import contextlib
import io
import sys
from collections.abc import Generator

HANDLER = "moe_md.readable"  # name of the error handler in `codecs`
# In the texts of this package, and their neighbours in the field's texts.
READABLE = {
    "Å": "A",
    "\u212b": "A",
    "µ": "u",
    "μ": "u",
    "°": " deg",
    "Γ": "Gamma",
    "Δ": "Delta",
    "σ": "sigma",
    "λ": "lambda",
    "ε": "epsilon",
    "∂": "d",
    "√": "sqrt",
    "∞": "inf",
    "±": "+-",
    "×": "x",
    "·": "*",
    "−": "-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "→": "->",
    "←": "<-",
    "–": "-",
    "—": "-",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "…": "...",
    "\u00a0": " ",
    "⁻": "^-",
    "⁰": "^0",
    "¹": "^1",
    "²": "^2",
    "³": "^3",
}


def readable(error: UnicodeError) -> tuple[str, int]:
    """What to write for characters that an encoding lacks; called by `codecs`.

    >>> codecs.register_error(HANDLER, readable)
    >>> "0.1 ± 0.2 meV/Å², Å⁻¹, ß".encode("ascii", HANDLER).decode()
    '0.1 +- 0.2 meV/A^2, A^-1, \\\\xdf'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_replacement, missing)).replace("^-^", "^-"), error.end


def _replacement(character: str) -> str:
    return READABLE.get(character) or character.encode("ascii", "backslashreplace").decode()


@contextlib.contextmanager
def readable_output() -> Generator[None]:
    """Print any text to stdout and stderr, whatever their encodings; what they do is restored at the end."""
    codecs.register_error(HANDLER, readable)
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [(stream, stream.errors) for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=HANDLER)
    try:
        yield
    finally:
        for stream, errors in before:
            stream.reconfigure(errors=errors)
