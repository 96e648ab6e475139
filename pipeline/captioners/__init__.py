"""Captioners: image in, captions out."""
