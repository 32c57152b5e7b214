"""``python -m flowrun``: the command line."""

from __future__ import annotations

import sys

from flowrun.cli import main

if __name__ == "__main__":
    sys.exit(main())
