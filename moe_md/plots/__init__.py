"""Figures of results, drawn with matplotlib, and 3D views in notebooks."""
