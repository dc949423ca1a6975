"""`python -m detoxbench.cli`."""

import sys

from detoxbench.cli import main

sys.exit(main())
