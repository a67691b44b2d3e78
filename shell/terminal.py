"""The terminal as something to draw on, pauses of commands that repeat themselves, the time.

The only place of the shell, beside the prompt, that waits, looks at clocks and knows how large
the screen is: commands get these from their context, so tests need neither time nor a terminal.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shell.render import clip

__all__ = ["Screen", "TerminalScreen", "now", "sleep", "wall_s"]

# The alternate screen keeps what was on the terminal before; the cursor would only blink.
_OPEN: Final = "\x1b[?1049h\x1b[?25l"
_CLOSE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_LINE: Final = "\x1b[K"
_END_SCREEN: Final = "\x1b[J"
# Columns and lines where the terminal does not tell.
SIZE_UNKNOWN: Final = (80, 24)


class Screen(Protocol):
    """Something whose whole content can be drawn again and again."""

    def open(self) -> None:
        """Take the terminal."""

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines and nothing else."""

    def close(self) -> None:
        """Give the terminal back as it was."""


class TerminalScreen:
    """The alternate screen of a terminal; `size` returns its columns and lines."""

    def __init__(self, out: Any, size: Callable[[], Sequence[int]] | None = None) -> None:
        self._out = out
        self._size = size or self._terminal_size

    def open(self) -> None:
        """Switch to the alternate screen."""
        self._write(_OPEN)

    def draw(self, lines: Sequence[str]) -> None:
        """Draw over what is there, without a blank screen between two pictures."""
        columns, height = self._size()
        shown = list(lines)
        if len(shown) > height:
            hidden = len(shown) - height + 1
            shown = [*shown[: max(0, height - 1)], f"... {hidden} more lines"]
        # One column stays free: a full line would leave the cursor where erasing eats a sign.
        text = f"{_END_LINE}\r\n".join(clip(line, columns - 1) for line in shown)
        self._write(f"{_HOME}{text}{_END_LINE}{_END_SCREEN}")

    def close(self) -> None:
        """Switch back; the cursor shows again."""
        self._write(_CLOSE)

    def _terminal_size(self) -> Sequence[int]:
        try:
            return os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return SIZE_UNKNOWN

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


async def sleep(seconds: float) -> None:
    """Pause."""
    await asyncio.sleep(seconds)


def now() -> float:
    """Seconds that only go on, of the loop that runs."""
    return asyncio.get_running_loop().time()


def wall_s() -> float:
    """Seconds since 1970 by the operator's machine; they may jump."""
    return time.time()  # noqa: TID251 - the shell's only look at it
