"""`python -m pegaskv` is the command `pegaskv`."""

import sys

from pegaskv.server.main import main

sys.exit(main())
