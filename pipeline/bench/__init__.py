"""`python -m pipeline bench`: speed as ratios between things measured in turns."""
