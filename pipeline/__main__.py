"""`python -m pipeline`."""

import sys

from pipeline.cli import main

# Dask's worker processes import this module again; only the first one is the command.
if __name__ == "__main__":
    sys.exit(main())
