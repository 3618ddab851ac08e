"""Numbers about crystals, surfaces, expert boundaries, dynamics and errors."""

from moe_md.renamed import missing_attribute


def __getattr__(name: str):
    raise missing_attribute(__name__, name)
