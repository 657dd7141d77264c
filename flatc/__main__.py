"""`python -m flatc`: the same as the command `flatc`."""

import sys

from flatc.cli import command

if __name__ == "__main__":
    sys.exit(command())
