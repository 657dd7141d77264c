"""`python -m flatc`: the same as the command `flatc`."""

import sys

from flatc.cli import main

if __name__ == "__main__":
    sys.exit(main())
