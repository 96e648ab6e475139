"""Dask stages that turn image-text lists into scored WebDataset shards."""

import os

# albumentations, which img2dataset imports, asks the network for a newer version unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
