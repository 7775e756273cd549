"""The command line: ``python -m speval``."""

import sys

from .cli import main

sys.exit(main())
