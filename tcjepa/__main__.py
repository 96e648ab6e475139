"""`python -m tcjepa`."""

import os
import sys

# torch's OpenMP threads spin while they wait for each other. Where a data worker, or anything else,
# wants a core too, they spin on the time of the thread they wait for: on a busy 2-core machine one
# step of the demo took 7.1 s, and 2.0 s with sleeping threads. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tcjepa.cli import main

if __name__ == "__main__":
    sys.exit(main())
