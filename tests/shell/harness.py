"""A shell session in a test: run lines, look at what was printed."""

import json
from typing import Any

from shell.batch import expression, run_batch
from shell.context import Context
from shell.registry import load_commands
from shell.runner import Outcome, run_line
from tests.shell.fake_client import FakeCluster

COMMANDS = load_commands()


class Recorder:
    """An output that remembers; `data_text` is stdout and `notes` stderr."""

    def __init__(self) -> None:
        self.data_text = ""
        self.notes: list[str] = []

    def data(self, text: str) -> None:
        self.data_text += text

    def note(self, line: str) -> None:
        self.notes.append(line)

    async def drain(self) -> None:
        pass


class Session:
    """A session on a fake cluster that has the table `users`, in use unless told otherwise."""

    def __init__(self, *, table: str = "users", **context: Any) -> None:
        self.cluster = FakeCluster()
        self.cluster.create("users")
        self.output = Recorder()
        self.context = Context(
            cluster="fake:1",
            connect=self.cluster.connect,
            output=self.output,
            table_name=table,
            **context,
        )

    async def run(self, line: str, *, where: str = "") -> Outcome:
        """Run one line; what was printed before is forgotten."""
        self.output.data_text = ""
        self.output.notes = []
        return await run_line(self.context, line, COMMANDS, where=where)

    async def text(self, line: str) -> str:
        """Run a line that must succeed and return its data."""
        outcome = await self.run(line)
        assert outcome.status == 0, self.output.notes
        return self.output.data_text

    async def fails(self, line: str, status: int = 2) -> str:
        """Run a line that must fail with `status` and return what was said."""
        outcome = await self.run(line)
        assert outcome.status == status, (outcome, self.output.notes)
        return "\n".join(self.output.notes)

    async def data(self, line: str) -> Any:
        """Run a line in the JSON form and return its data."""
        answer = await self.json(line)
        assert answer["ok"] is True, answer
        return answer["data"]

    async def json(self, line: str) -> dict[str, Any]:
        """Run a line in the JSON form and return the object."""
        before, self.context.json = self.context.json, True
        await self.run(line)
        self.context.json = before
        assert self.output.data_text.count("\n") == 1
        answer: dict[str, Any] = json.loads(self.output.data_text)
        return answer

    async def script(self, text: str, *, name: str = "-e", keep_going: bool = False) -> int:
        """Run lines as a batch and return the exit status."""
        source = expression(text, name=name)
        return await run_batch(self.context, COMMANDS, [source], keep_going=keep_going)
