"""Writes `docs/shell.md` from the shell's registry: `python -m tools.shell_docs`.

A test compares the page with what this module would write.
"""

import sys
from pathlib import Path

from shell.commands.session import GROUPS
from shell.registry import Command, Needs, load_commands

__all__ = ["document", "main"]

_PAGE = Path(__file__).parents[1] / "docs" / "shell.md"

_OPENING = r"""# The shell

This page is written by `python -m tools.shell_docs` from the shell's own registry.

```
pegaskv-shell                                     the prompt, at a terminal
pegaskv-shell -e 'use users' -e 'get user_1 name' commands from the command line
pegaskv-shell -f script                           commands from a file, one a line
producer | pegaskv-shell                          commands from standard input, as they come
```

`--cluster HOST:PORT[,…]` or `PEGASKV_CLUSTER` names the meta servers (default
`127.0.0.1:34601`), `--profile NAME` takes a cluster from `~/.config/pegaskv/shell.toml`
(`conf/shell.toml` shows its keys; `--config FILE` names another file), `--table NAME` is a
`use` at the start, `--timeout` limits one operation (milliseconds, or `500ms`, `5s`, `2m`).

## Words and bytes

Blanks separate words. In double quotes `\xHH`, `\n`, `\r`, `\t`, `\"` and `\\` stand for bytes;
single quotes take everything literally; `#` at the beginning of a word opens a comment. Keys and
values are bytes: text is UTF-8, and every other byte can be written as `"\x00"`. What is shown
can be typed again: rows appear in double quotes with the same escapes, so no key can disturb
the terminal. `escape_all true` shows every byte as `\xHH`.

A word that begins with a quote is never an option: `get "-h" name` reads the hash key `-h`.

## Scripts

Data goes to stdout and messages to stderr. A batch stops at its first error, unless
`--keep-going`; errors of a file carry `script:line`. Dangerous commands ask on the terminal; where
nobody can be asked they need `--yes`, of the command or of the whole batch.

| exit status | |
|---|---|
| 0 | ok |
| 1 | a command failed |
| 2 | usage: the command line, a file, or a command that cannot be understood |
| 3 | the cluster cannot be reached |
| 4 | what was to be created exists already |
| 130 | interrupted |

Of a batch it is that of the first command that failed. That a row is not there, or that a check
does not hold, is an answer and no failure.

`--json` answers each command with one object on one line:

```
{"ok": true, "command": "get", "data": "Ada"}
{"ok": false, "command": "use", "error": {"code": 40, "name": …, "message": …, "hint": …}}
```

Bytes are text in which `\\` stands for a backslash and `\xHH` for a byte that cannot be printed.
Error codes are those of `docs/protocol.md`; codes below zero are the shell's own: -2 usage, -3 not
confirmed, -4 interrupted, -5 not reached by `wait_for` or `watch`. The answer to a second `add_dup`
carries `existing`, `requested` and `differences` beside the message, one of `wait_for` the last
`state`. A scan writes its rows as they are read, so `ok` comes last in its object; when it breaks,
`data` has the rows that were read and `error` says why. `watch` does the same with its changes.

## The prompt

Tab completes commands, options, tables and envs; the grey text is a suggestion from the history
(right arrow takes it); the toolbar shows cluster, table, health, the time the last command took
and what the next argument means. A line with an open quote goes on in the next. Ctrl-C clears the
line or ends the running command, Ctrl-D leaves. Output that does not fit the screen goes through
`$PAGER`. The history is kept in `~/.local/state/pegaskv/shell_history`; a line that begins with a
blank is not kept. `NO_COLOR` is respected.
"""


def document() -> str:
    """Return the text of the page."""
    commands = list(dict.fromkeys(load_commands().values()))
    parts = [_OPENING]
    for group, title in GROUPS.items():
        parts.append(f"\n## Commands: {title}\n")
        parts += [_entry(each) for each in commands if each.group == group]
    return "".join(parts)


def _entry(command: Command) -> str:
    lines = ["", f"### {command.name}", "", f"`{command.usage}`", ""]
    sentence = command.help[0].upper() + command.help[1:] + "."
    if command.needs is Needs.TABLE:
        sentence += " Works on the table in use."
    if command.danger:
        flag = command.danger_when.replace("_", "-")
        sentence += f" Asks first with `--{flag}`." if flag else " Asks first."
    if command.aliases:
        sentence += f" Also: {', '.join(f'`{alias}`' for alias in command.aliases)}."
    lines.append(sentence)
    if command.details:
        lines += ["", command.details]
    rows = (*command.arguments, *command.repeated, *command.all_options)
    if rows:
        lines += ["", "| | |", "|---|---|"]
    for each in rows:
        flags = getattr(each, "flags", (f"<{each.name}>",))
        name = " ".join(f"`{flag}`" for flag in flags)
        choices = f": {', '.join(f'`{choice}`' for choice in each.choices)}" if each.choices else ""
        lines.append(f"| {name} | {each.help}{choices} |")
    lines += ["", "```", *command.examples, "```", "", f"JSON data: {command.json}.", ""]
    return "\n".join(lines)


def main() -> int:
    """Write the page."""
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text(document())
    print(f"wrote {_PAGE.relative_to(Path.cwd()) if _PAGE.is_relative_to(Path.cwd()) else _PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
