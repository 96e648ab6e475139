"""Figures and tables of README and docs, made anew from the result files under docs/results."""
