"""Formulas, bridges, experiments and page parts of the book *dlopt*."""

__version__ = "0.1.0"
