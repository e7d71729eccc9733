"""`python -m lowrank_clone` is `lrc`."""

import sys

from .cli.main import main

sys.exit(main())
