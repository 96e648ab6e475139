"""Scores of captions: wording, language, image-text alignment, and quality, their mixture."""
