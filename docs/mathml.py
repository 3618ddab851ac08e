"""Formulas as MathML, which browsers draw by themselves: no script and no network.

A Sphinx extension. LaTeX that `latex2mathml` does not know is an error, and not text with backslashes.
"""

import re
from xml.etree import ElementTree

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util.docutils import SphinxTranslator

LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}  # of sums and products in a display
LEFT_OVER = re.compile(r"\\\w+|&(?!#|\w+;)")


def mathml(latex: str, display: str) -> str:
    """A formula as a `<math>` element.

    Args:
        latex: the formula, without dollar signs.
        display: "inline" or "block".

    Raises:
        ValueError: part of the formula is not understood.

    >>> mathml("x", "inline")
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>'
    """
    text = convert(latex, display=display)
    if found := LEFT_OVER.findall(text):
        raise ValueError(f"latex must use commands that latex2mathml knows, got {found} in {latex!r}.")
    if display == "inline":
        return text
    ElementTree.register_namespace("", "http://www.w3.org/1998/Math/MathML")
    tree = ElementTree.fromstring(text)
    for element in tree.iter():
        space, _, name = element.tag.rpartition("}")
        if name in LIMITS and len(element) and element[0].text in ("∑", "∏"):
            element.tag = f"{space}}}{LIMITS[name]}"
    return ElementTree.tostring(tree, encoding="unicode")


def visit_inline(translator: SphinxTranslator, node) -> None:
    """Write a formula in a line of text."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def visit_block(translator: SphinxTranslator, node) -> None:
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode


def setup(app) -> dict:
    """Register the renderer; `html_math_renderer = "mathml"` chooses it."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
