"""`python -m detoxbench` is `detoxbench`."""

import sys

from detoxbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
