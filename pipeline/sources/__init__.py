"""Where image-text pairs come from: one module per kind of source."""
