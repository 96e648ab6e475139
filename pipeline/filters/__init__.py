"""Filters: measures of images and captions first, verdicts from thresholds second."""
