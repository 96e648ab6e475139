"""Dask stages that turn image-text lists into scored WebDataset shards."""

import os

# albumentations, which img2dataset imports, looks for a newer version online unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
