"""`python -m shell`: the same as `pegaskv-shell`."""

import sys

from shell.app import main

if __name__ == "__main__":
    sys.exit(main())
