"""`python -m tcjepa`."""

import sys

from tcjepa.cli import main

if __name__ == "__main__":
    sys.exit(main())
