"""`python -m distillnb` is the command `distillnb`."""

import sys

from .lab.cli import main

sys.exit(main())
