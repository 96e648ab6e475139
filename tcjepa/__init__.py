"""Streaming trainer, evaluation and robustness studies for Text-Conditional JEPA."""
