"""Who calls one after another, and finds the server with nothing else to do. On the hot path.

What many have asked for is handled together at the end of a turn of the loop; somebody who is
alone would only wait for that.
"""

from collections.abc import Callable

__all__ = ["SingleCaller"]


class SingleCaller:
    """What connections and the front know of it together; one of a server.

    `count`: how many connections had a read in this turn that left them with one request under
    way. `alone`: whether it was one in the last turn that had any; then `answer` is called for
    the next one, within the read.
    """

    __slots__ = ("alone", "answer", "count")

    def __init__(self) -> None:
        self.count = 0
        self.alone = False
        self.answer: Callable[[], None] = _nobody_answers


def _nobody_answers() -> None:
    pass
