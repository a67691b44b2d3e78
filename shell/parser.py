r"""pure: a line to a parsed command.

Words are split by the rules of Pegasus's shell: blanks separate, double quotes know
the escapes \xHH \n \r \t \" \\, single quotes are literal, `#` at the beginning
of a word opens a comment. Every byte string can be written, and `quote` writes it:
reading the result back gives the same bytes. A word that begins with a
quote is never an option, so a key may begin with a dash as long as it is quoted.

Text is `str` with surrogate escapes where the source was not UTF-8, so bytes that a
script holds raw come through unchanged.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pegaskv.base.options import nearest
from shell.errors import UsageError
from shell.registry import Argument, Command, Kind, Option

__all__ = [
    "Expected",
    "Invocation",
    "Scan",
    "UnfinishedQuote",
    "Word",
    "escape",
    "expected_next",
    "innermost",
    "parse",
    "parse_duration_ms",
    "quote",
    "scan",
]

_BLANK: Final = re.compile(r"[ \t\r\n\f\v]+")
_PLAIN: Final = re.compile(r"""[^ \t\r\n\f\v"']+""")
_DOUBLE: Final = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_SINGLE: Final = re.compile(r"'([^']*)'", re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b'"': b'"', b"\\": b"\\"}
# What may stand without quotes when the shell writes a word.
_BARE: Final = re.compile(r"[A-Za-z0-9_./:@%+=,][A-Za-z0-9_./:@%+=,#-]*")
_NUMBER: Final = re.compile(r"[+-]?\d+", re.ASCII)
_DURATION: Final = re.compile(r"(\d+)(ms|s|m)?", re.ASCII)
_ENV_SEPARATOR: Final = re.compile(r",(?=[A-Za-z0-9_.\-]+=)")
_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000}
# An hour for one operation; whoever waits for a copy may have to wait a week.
_DURATION_MS_MAX: Final = {"ms": 3_600_000, "s": 604_800_000}
_TRUE: Final = frozenset({"true", "t", "yes", "y", "1"})
_FALSE: Final = frozenset({"false", "f", "no", "n", "0"})


class UnfinishedQuote(UsageError):
    """The line ends inside a quote; at a prompt, more may follow."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a line: its bytes, where it stands, and whether it begins with a quote."""

    value: bytes
    start: int
    end: int
    quoted: bool = False

    @property
    def text(self) -> str:
        """The word as text; bytes that are not UTF-8 become surrogates."""
        return self.value.decode("utf-8", "surrogateescape")

    @property
    def is_flag(self) -> bool:
        """Whether the word has the shape of an option. A negative number has not."""
        return (
            not self.quoted
            and len(self.value) > 1
            and self.value.startswith(b"-")
            and not _NUMBER.fullmatch(self.text)
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """The words of a line, and what ended the reading early, if anything did."""

    words: tuple[Word, ...]
    error: UsageError | None = None
    commented: bool = False


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command with its arguments by name, checked and converted."""

    command: Command
    values: Mapping[str, Any]
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """What the next word of a line may be: an argument, the value of an option, or options."""

    argument: Argument | None
    options: tuple[Option, ...]
    seen: tuple[bytes, ...] = ()


def scan(line: str) -> Scan:
    """Split `line` into words as far as it can be read; never raises."""
    words: list[Word] = []
    position = 0
    try:
        while True:
            blank = _BLANK.match(line, position)
            position = blank.end() if blank else position
            if position == len(line):
                return Scan(tuple(words))
            if line[position] == "#":
                return Scan(tuple(words), commented=True)
            word = _read_word(line, position)
            words.append(word)
            position = word.end
    except UsageError as error:
        return Scan(tuple(words), error)


def _read_word(line: str, start: int) -> Word:
    parts: list[bytes] = []
    position, quoted = start, line[start] in "\"'"
    while position < len(line) and not _BLANK.match(line, position):
        mark = line[position]
        if mark in "\"'":
            match = (_DOUBLE if mark == '"' else _SINGLE).match(line, position)
            if match is None:
                raise UnfinishedQuote(
                    f"the quote {mark} at column {position + 1} is never closed",
                    hint=f'end the word with {mark}, or write "\\x{ord(mark):02x}" for the sign',
                )
            body = match[1].encode("utf-8", "surrogateescape")
            parts.append(_ESCAPE.sub(_unescape, body) if mark == '"' else body)
            position = match.end()
            if position < len(line) and not _BLANK.match(line, position):
                raise UsageError(
                    f"text goes on right after the closing quote at column {position}",
                    hint="put a blank behind the closing quote",
                )
        else:
            match = _PLAIN.match(line, position)
            assert match is not None
            parts.append(match[0].encode("utf-8", "surrogateescape"))
            position = match.end()
    return Word(b"".join(parts), start, position, quoted)


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if len(code) == 3:
        return bytes.fromhex(code[1:].decode())
    if code not in _ESCAPES:
        shown = code.decode("utf-8", "replace")
        raise UsageError(
            f"unknown escape \\{shown} in double quotes",
            hint='known are \\xHH \\n \\r \\t \\" and \\\\; single quotes take all literally',
        )
    return _ESCAPES[code]


def escape(data: bytes, *, every_byte: bool = False) -> str:
    r"""Return `data` as text: what can be printed as it is, the rest as \xHH, and \ as \\.

    Reversible. Nothing in the result can move a cursor or end a line. `every_byte`
    writes each byte as \xHH.
    """
    if every_byte:
        return "".join(f"\\x{byte:02x}" for byte in data)
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape_one, text))


def _escape_one(sign: str) -> str:
    if sign == "\\":
        return "\\\\"
    if sign.isprintable():
        return sign
    return "".join(f"\\x{byte:02x}" for byte in sign.encode("utf-8", "surrogateescape"))


def quote(data: bytes, *, bare: bool = False, every_byte: bool = False) -> str:
    """Return a word that reads back as `data`: in double quotes, or without when `bare` allows."""
    text = escape(data, every_byte=every_byte)
    if bare and _BARE.fullmatch(text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def parse(line: str, commands: Mapping[str, Command]) -> Invocation | None:
    """Return what `line` asks for, or None when it is blank or a comment.

    Raises:
        UnfinishedQuote: the line ends inside a quote.
        UsageError: the command, an option or an argument is unknown, missing or of a wrong
            form; the hint names the nearest one, or shows the usage.

    """
    scanned = scan(line)
    if scanned.error is not None:
        raise scanned.error
    if not scanned.words:
        return None
    return _invocation(scanned.words, commands)


def _invocation(words: Sequence[Word], commands: Mapping[str, Command]) -> Invocation:
    name, *rest = words
    found = find_command(name.text, commands)
    try:
        inner: Invocation | None = None
        if found.nested is not None:
            rest, inner = _take_command(found, found.nested, rest, commands)
        values, places = _take_options(found, rest)
        if found.nested is not None:
            values[found.nested.name] = inner
        else:
            _take_arguments(found, places, values)
    except UsageError as error:
        if not error.hint:
            error.hint = f"usage: {found.usage}"
        raise
    for option in found.all_options:
        if option.required and option.name not in values:
            raise UsageError(
                f"{found.name} needs {option.usage}: {option.help}", hint=f"usage: {found.usage}"
            )
        default = option.default if not option.repeated else []
        values.setdefault(option.name, default)
    confirmed = bool(values.pop("yes", False)) if found.danger else False
    return Invocation(found, values, confirmed)


def _take_command(
    found: Command, argument: Argument, words: Sequence[Word], commands: Mapping[str, Command]
) -> tuple[list[Word], Invocation]:
    """Split the words of a command that takes another one; return its own, and the other."""
    start = _command_start(found, words)
    own, rest = list(words[:start]), list(words[start:])
    if not rest:
        raise UsageError(f"{found.name} needs <{argument.name}>: {argument.help}")
    if rest[0].quoted:
        # The whole command in quotes.
        scanned = scan(rest[0].text)
        if scanned.error is not None:
            raise scanned.error
        rest[:1] = scanned.words
        if not rest:
            raise UsageError(f"{found.name} needs <{argument.name}>: {argument.help}")
    inner = find_command(rest[0].text, commands)
    inner_words = rest[:1]
    following = iter(rest[1:])
    for word in following:
        flag = word.text.partition("=")[0]
        option = found.option(flag) if word.is_flag and inner.option(flag) is None else None
        if option is None:
            inner_words.append(word)
            continue
        own.append(word)
        if option.kind is not Kind.SWITCH and b"=" not in word.value:
            own += [value for value in [next(following, None)] if value is not None]
    return own, _invocation(inner_words, commands)


def _command_start(found: Command, words: Sequence[Word]) -> int:
    """Return where the command that `found` takes begins: behind options and their values."""
    start = 0
    while start < len(words) and words[start].is_flag:
        option = found.option(words[start].text.partition("=")[0])
        takes_next = option is not None and option.kind is not Kind.SWITCH
        start += 2 if takes_next and b"=" not in words[start].value else 1
    return min(start, len(words))


def innermost(
    found: Command, words: tuple[Word, ...], commands: Mapping[str, Command]
) -> tuple[Command, tuple[Word, ...]]:
    """Return the command that the last of the complete `words` belongs to, and its words."""
    while found.nested is not None:
        start = _command_start(found, words)
        inner = commands.get(words[start].text) if start < len(words) else None
        if inner is None:
            break
        found, words = inner, words[start + 1 :]
    return found, words


def find_command(name: str, commands: Mapping[str, Command]) -> Command:
    """Return the command called `name`.

    Raises:
        UsageError: there is none; the hint names the nearest.

    """
    found = commands.get(name)
    if found is None:
        guess = nearest(name, tuple(commands))
        raise UsageError(
            f'unknown command "{escape(name.encode("utf-8", "surrogateescape"))}"',
            hint=f"did you mean `{guess}`?" if guess else "`help` lists the commands",
        )
    return found


def _take_options(found: Command, words: list[Word]) -> tuple[dict[str, Any], list[Word]]:
    values: dict[str, Any] = {}
    places: list[Word] = []
    rest = iter(words)
    for word in rest:
        if not word.is_flag:
            places.append(word)
            continue
        if word.value == b"--":
            places.extend(rest)
            break
        flag, equals, attached = word.text.partition("=")
        option = found.option(flag)
        if option is None:
            raise _unknown_option(found, flag)
        value: Any = True
        if option.kind is not Kind.SWITCH:
            if equals:
                taken = Word(attached.encode("utf-8", "surrogateescape"), word.start, word.end)
            else:
                taken_or_none = next(rest, None)
                if taken_or_none is None:
                    raise UsageError(f"{flag} needs a value: {option.help}")
                taken = taken_or_none
            value = _convert(option, taken)
        elif equals:
            raise UsageError(f"{flag} takes no value")
        if option.repeated:
            values.setdefault(option.name, []).append(value)
        elif option.name in values:
            raise UsageError(f"{flag} is given twice")
        else:
            values[option.name] = value
    return values, places


def _unknown_option(found: Command, flag: str) -> UsageError:
    known = [each for option in found.all_options for each in option.flags]
    guess = nearest(flag, known)
    if guess:
        hint = f"did you mean `{guess}`?"
    elif known:
        hint = f"{found.name} knows {', '.join(known)}; a key that begins with - goes in quotes"
    else:
        hint = f"{found.name} has no options; a key that begins with - goes in quotes"
    return UsageError(f"{found.name} has no option {escape(flag.encode())}", hint=hint)


def _take_arguments(found: Command, places: list[Word], values: dict[str, Any]) -> None:
    for argument, word in zip(found.arguments, places, strict=False):
        values[argument.name] = _convert(argument, word)
    for argument in found.arguments[len(places) :]:
        if argument.required:
            raise UsageError(f"{found.name} needs <{argument.name}>: {argument.help}")
        values[argument.name] = argument.default
    rest = places[len(found.arguments) :]
    if not found.repeated:
        if rest:
            raise UsageError(f"{found.name} takes no argument {quote(rest[0].value)} here")
        return
    size = len(found.repeated)
    if len(rest) % size:
        missing = found.repeated[len(rest) % size]
        raise UsageError(f"the last <{missing.name}> is missing: {missing.help}")
    if len(rest) // size < found.repeated_minimum:
        missing = found.repeated[0]
        raise UsageError(f"{found.name} needs <{missing.name}>: {missing.help}")
    converted = [_convert(found.repeated[n % size], word) for n, word in enumerate(rest)]
    if size > 1:
        values[found.repeated_name] = list(zip(*[iter(converted)] * size, strict=True))
    else:
        values[found.repeated_name] = converted


def _convert(argument: Argument, word: Word) -> Any:
    """Return the value of `word`, as the argument's kind says."""
    if argument.kind is Kind.BYTES:
        return word.value
    try:
        text = word.value.decode()
    except UnicodeDecodeError:
        raise UsageError(f"<{argument.name}> is not text in UTF-8") from None
    match argument.kind:
        case Kind.INTEGER:
            return _convert_integer(argument, text)
        case Kind.BOOLEAN:
            if text.lower() not in _TRUE | _FALSE:
                raise UsageError(f"<{argument.name}> is true or false, not {quote(word.value)}")
            return text.lower() in _TRUE
        case Kind.CHOICE:
            if text not in argument.choices:
                guess = nearest(text, argument.choices)
                raise UsageError(
                    f"<{argument.name}> cannot be {quote(word.value)}",
                    hint=f"did you mean `{guess}`?"
                    if guess
                    else f"it is one of {', '.join(argument.choices)}",
                )
            return text
        case Kind.DURATION:
            return parse_duration_ms(text, argument.name)
        case Kind.SECONDS:
            return parse_duration_ms(text, argument.name, unit="s")
        case Kind.ENVS:
            return _convert_envs(text)
    return text


def _convert_integer(argument: Argument, text: str) -> int:
    # A number of thousands of digits is refused before Python refuses to convert it.
    if not _NUMBER.fullmatch(text) or len(text) > 20:
        raise UsageError(f"<{argument.name}> is a whole number, not {quote(text.encode())}")
    number = int(text)
    if argument.minimum is not None and number < argument.minimum:
        raise UsageError(f"<{argument.name}> is at least {argument.minimum}, not {number}")
    if argument.maximum is not None and number > argument.maximum:
        raise UsageError(f"<{argument.name}> is at most {argument.maximum}, not {number}")
    return number


def parse_duration_ms(text: str, name: str = "timeout", *, unit: str = "ms") -> int:
    """Return the milliseconds that `text` means: `5000`, `500ms`, `5s` or `2m`.

    `unit` is that of a bare number.

    Raises:
        UsageError: it is none of these, or zero, or above an hour.

    """
    match = _DURATION.fullmatch(text)
    number = int(match[1]) * _UNITS_MS[match[2] or unit] if match and len(text) < 12 else 0
    if not 0 < number <= _DURATION_MS_MAX[unit]:
        what = "milliseconds" if unit == "ms" else "seconds"
        most = _DURATION_MS_MAX[unit] // _UNITS_MS[unit]
        raise UsageError(
            f"<{name}> is 1 to {most} {what}, not {quote(text.encode())}",
            hint=f"a number of {what}, or with a unit: 500ms, 5s, 2m",
        )
    return number


def _convert_envs(text: str) -> dict[str, str]:
    """Read `k=v,k=v`; a comma belongs to a value unless `name=` follows it."""
    envs: dict[str, str] = {}
    for part in _ENV_SEPARATOR.split(text):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise UsageError(
                f"envs are written k=v,k=v, and {quote(part.encode())} is not",
                hint="for example: default_ttl=3600,durability=os",
            )
        if name in envs:
            raise UsageError(f"the env {name} is given twice")
        envs[name] = value
    return envs


def expected_next(found: Command, words: tuple[Word, ...]) -> Expected:
    """Return what may follow the complete `words` of `found` (without its name)."""
    places = 0
    used: set[str] = set()
    only_places = False
    rest = iter(words)
    seen: list[bytes] = []
    for word in rest:
        if only_places or not word.is_flag:
            places += 1
            seen.append(word.value)
        elif word.value == b"--":
            only_places = True
        elif option := found.option(word.text.partition("=")[0]):
            used.add(option.name)
            takes_next = option.kind is not Kind.SWITCH and b"=" not in word.value
            if takes_next and next(rest, None) is None:
                return Expected(option, ())
    free = tuple(
        option for option in found.all_options if option.repeated or option.name not in used
    )
    argument: Argument | None = None
    if places < len(found.arguments):
        argument = found.arguments[places]
    elif found.repeated:
        argument = found.repeated[(places - len(found.arguments)) % len(found.repeated)]
    return Expected(argument, () if only_places else free, tuple(seen))
