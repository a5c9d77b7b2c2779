"""``python -m funcexplain`` is the command ``funcexplain``."""

import sys

from funcexplain.cli import main

if __name__ == "__main__":
    sys.exit(main())
