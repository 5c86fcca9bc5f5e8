"""python -m gitsmart"""

import sys

from gitsmart.cli import main

if __name__ == "__main__":
    sys.exit(main())
