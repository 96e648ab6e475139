"""Dask stages that turn image-text lists into scored WebDataset shards."""
