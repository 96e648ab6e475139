"""`python -m tcjepa bench`: speed as ratios between things measured in turns."""
