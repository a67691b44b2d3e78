"""The loop that tests run on: uvloop, and a leak is an error instead of a hang.

uvloop warns of sockets that are still open when it closes. With warnings as errors that warning is
raised inside its closing, which then waits for ever for a handle that it did not close. So the
warnings are kept back until the loop is closed, and raised then.
"""

import sys
import warnings

import uvloop

__all__ = ["CheckedLoop"]


class CheckedLoop(uvloop.Loop):
    """uvloop, for tests."""

    def __init__(self) -> None:
        super().__init__()
        # It looks for an environment variable only, and the servers under test would inherit that.
        self.set_debug(sys.flags.dev_mode)

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().close()
        for warning in caught:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
