"""pure: what the toolbar says about the line that is being typed."""

from collections.abc import Mapping

from shell.errors import UsageError
from shell.parser import UnfinishedQuote, expected_next, find_command, innermost, scan
from shell.registry import Command, Kind, Option

__all__ = ["hint"]


def hint(text: str, commands: Mapping[str, Command]) -> str:
    """Return the next argument and its meaning, or what is wrong with `text` so far."""
    scanned = scan(text)
    if isinstance(scanned.error, UnfinishedQuote):
        return "the quote is open: Enter goes on in the next line"
    if scanned.error is not None:
        return scanned.error.message
    if not scanned.words:
        return "help lists the commands, Tab completes"
    name, *rest = scanned.words
    typing = scanned.words[-1].end == len(text) and not scanned.commented
    if typing and not rest:
        starting = [word for word in commands if word.startswith(name.text)]
        if starting and name.text not in commands:
            return "  ".join(starting)
    try:
        found = find_command(name.text, commands)
    except UsageError as error:
        return f"{error.message}; {error.hint}"
    if typing and not rest:
        return f"{found.usage} — {found.help}"
    # A word without a blank behind it is still being typed: the hint is about that word.
    found, complete = innermost(found, tuple(rest[:-1] if typing else rest), commands)
    if typing and rest[-1].is_flag and (option := found.option(rest[-1].text.partition("=")[0])):
        return f"{', '.join(option.flags)}: {option.help}"
    expected = expected_next(found, complete)
    if expected.argument is None:
        if expected.options:
            return "options: " + " ".join(option.usage for option in expected.options)
        return "nothing more; Enter runs it"
    argument = expected.argument
    label = argument.metavar if isinstance(argument, Option) else argument.usage
    choices = f" ({' '.join(argument.words)})" if argument.words else ""
    kind = (
        "" if argument.kind in (Kind.BYTES, Kind.TEXT, Kind.CHOICE) else f", {argument.kind.value}"
    )
    return f"{label}{kind}: {argument.help}{choices}"
