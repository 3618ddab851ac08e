"""The documentation as pages: `sphinx-build -W --keep-going docs docs/_build`.

Docstrings have Google's style, single backticks as in Markdown, formulas in indented
blocks, and the meaning of each field in a comment beside it. The functions here turn
that into reStructuredText.
"""

import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("MPLBACKEND", "agg")

project = "moe_md"
author = "The moe_md authors"
copyright = "The moe_md authors, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_figures", "images"]
html_theme = "furo"
html_title = "moe_md"
html_copy_source = False
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["wrap.css"]

myst_enable_extensions = ["dollarmath", "colon_fence", "fieldlist"]
myst_heading_anchors = 3
default_role = "code"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]

SECTIONS = ("Args:", "Returns:", "Raises:", "Source:", "Example:", "Examples:", "Note:", "Yields:")
FIELD = re.compile(r"^    (\w+): (.+?)(?: = (.+?))?(?:  # (.*))?$", re.MULTILINE)


def formulas(app, what, name, obj, options, lines: list[str]) -> None:
    """Make indented paragraphs outside of sections literal, and escape bars and stars elsewhere."""
    made: list[str] = []
    prose: list[str] = []
    inside, literal = False, False

    def flush() -> None:
        made.extend(escaped("\n".join(prose)).split("\n") if prose else [])
        prose.clear()

    for i, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            inside, literal = line.strip() in SECTIONS, False
        elif line.startswith("    ") and not inside and not literal and not lines[i - 1].strip():
            flush()
            made += ["::", ""]
            literal = True
        if literal or line.lstrip().startswith((">>>", "...")):
            flush()
            made.append(line)
        else:
            prose.append(line)
    flush()
    lines[:] = made


def several_returns(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn two or more lines `name: text` under `Returns:` into a list."""
    if "Returns:" not in lines:
        return
    start = lines.index("Returns:") + 1
    stop = next(
        (i for i in range(start, len(lines)) if lines[i].strip() and not lines[i].startswith(" ")), len(lines)
    )
    named = [re.match(r"    (\w+): (.*)", line) for line in lines[start:stop]]
    if sum(map(bool, named)) > 1:
        body = zip(named, lines[start:stop])
        items = [f"    * `{m[1]}`: {m[2]}" if m else f"      {line.strip()}".rstrip() for m, line in body]
        lines[start:stop] = ["    In this order", "", *items]


def escaped(text: str) -> str:
    """Prose with the characters escaped that reStructuredText would read as markup; code is unchanged."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts
    )


def fields_of(obj) -> list[tuple[str, str, str | None, str | None]]:
    """Name, type, default and comment of the fields of a dataclass or named tuple."""
    if not inspect.isclass(obj) or not (hasattr(obj, "_fields") or hasattr(obj, "__dataclass_fields__")):
        return []
    declared = list(getattr(obj, "__dataclass_fields__", {}).values())
    if any("help" in field.metadata for field in declared):  # settings have a help text
        return [_setting(field) for field in declared]
    try:
        found = FIELD.findall(inspect.getsource(obj).partition("\n    def ")[0])
    except (OSError, TypeError):
        return []
    known = set(getattr(obj, "_fields", ())) | set(getattr(obj, "__dataclass_fields__", ()))
    return [field for field in found if field[0] in known]


def _setting(field: dataclasses.Field) -> tuple[str, str, str | None, str | None]:
    """Name, type, default and help text of a settings field."""
    kind = getattr(field.type, "__name__", str(field.type))
    default = None if field.default is dataclasses.MISSING else repr(field.default)
    return field.name, kind, default, field.metadata.get("help")


def fields(app, what, name, obj, options, lines: list[str]) -> None:
    """Add the list of fields with their comments."""
    found = fields_of(obj) if what == "class" else []
    if found:
        lines += ["", ".. rubric:: Fields", ""]
        for field, kind, default, comment in found:
            default = "" if not default or default.startswith("field(") else f" = ``{default}``"
            lines.append(f"* ``{field}``: ``{kind}``{default}" + (f", {escaped(comment)}" if comment else ""))
        lines.append("")


def skip_fields(app, what, name, obj, skip, options):
    """Skip fields, which are in the list of their class."""
    return True if what == "class" and (type(obj).__name__ in ("_tuplegetter", "member_descriptor")) else None


def draw(app) -> None:
    """Draw the pictures before pages are read."""
    import figures

    figures.main(HERE / "_figures")


def setup(app) -> None:
    app.connect("builder-inited", draw)
    app.connect("autodoc-process-docstring", formulas, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", several_returns, priority=200)
    app.connect("autodoc-process-docstring", fields, priority=900)  # after it
    app.connect("autodoc-skip-member", skip_fields)
