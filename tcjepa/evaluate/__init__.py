"""Evaluation of frozen encoders: what their features make easy, and how sure we are."""
