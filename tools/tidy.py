"""What no linter checks: lengths, openings, and that nobody goes round a seam.

`python -m tools.tidy` reads every file of the project and names what breaks a
rule, with its place. An exemption is an entry of `ALLOWED` with its reason. The
lists only shrink: an entry that is no longer needed is itself a violation.

The seams are what makes the simulation honest: one call to the machine's clock,
disk, network, threads or dice anywhere else, and a seed no longer repeats a run.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["ALLOWED", "Violation", "check_source", "check_tree", "main"]

MODULE_LINES_MAX: Final = 600
FUNCTION_LINES_MAX: Final = 70
LONG_FUNCTIONS_MAX: Final = 5
TEST_NAME_WORDS_MIN: Final = 3
REASON_WORDS_MIN: Final = 3

# Where production code, and where any code or text, is looked for.
PRODUCTION: Final = ("pegaskv", "shell")
CODE: Final = (*PRODUCTION, "tests", "tools")
TEXT_SUFFIXES: Final = (".py", ".md", ".toml", ".cfg", ".txt", ".json", ".sh", "")
NOT_OURS: Final = ("__pycache__", ".*", "*.egg-info", "build", "dist")
TEXT_DIRECTORIES: Final = (*CODE, "conf", "docs", ".ci")

# Rule -> file -> why it may. Functions are written `file:qualified.name`.
ALLOWED: Final[Mapping[str, Mapping[str, str]]] = {
    "clock": {
        "pegaskv/server/child_processes.py": "a command waits for processes of this machine",
        "pegaskv/runtime/clock.py": "the seam itself",
        "shell/completer.py": "a person at the prompt waits for the names of tables",
        "shell/terminal.py": "the seam of the shell: pauses, and the operator's wall clock",
        "shell/interactive.py": "shows how long a command took, and looks after the toolbar",
    },
    "chance": {
        "pegaskv/server/host.py": "where the dice come from that everybody is given",
    },
    "files": {
        "pegaskv/server/child_processes.py": "what children write goes to files from the start",
        "pegaskv/server/onebox.py": "environment: where the user keeps state",
        "pegaskv/server/main.py": "umask and environment of the process, and nothing else",
        "pegaskv/storage/local_disk.py": "the seam itself",
        "shell/app.py": "environment, and what is unwritten when the reader of its output left",
        "shell/batch.py": "asks the person on the terminal while standard input is a script",
        "shell/config.py": "reads the settings of the person who runs it",
        "shell/interactive.py": "history and pager of the person at the prompt",
        "shell/terminal.py": "how large the screen of the person is",
    },
    "network": {
        "pegaskv/server/child_processes.py": "looks for free ports, and asks servers how they are",
        "pegaskv/net/asyncio_network.py": "the seam itself",
        "pegaskv/server/http.py": "aiohttp listens on the machine, and never in the simulation",
    },
    "tasks": {
        "pegaskv/blocking.py": "a loop in a thread of its own is what it is",
        "pegaskv/runtime/tasks.py": "the seam itself",
        "pegaskv/server/main.py": "the outermost frame runs the loop",
        "shell/app.py": "the outermost frame runs the loop",
    },
    "threads": {
        "pegaskv/blocking.py": "a loop in a thread of its own is what it is",
        "pegaskv/runtime/worker.py": "the seam itself",
        "pegaskv/storage/leveldb.py": "locks: to close a handle that is in use ends the process",
        "pegaskv/storage/memory.py": "locks: it is used from the same threads as LevelDB",
    },
    "process": {
        "pegaskv/server/child_processes.py": "starts and ends the servers of a onebox",
        "pegaskv/runtime/signals.py": "the seam itself",
        "shell/interactive.py": "Ctrl-C ends a command and not the shell",
    },
    "function-length": {},
    "module-length": {},
    "sleep": {
        "tests/helpers.py": "the only place in the tests that waits for real things",
        "tests/simulation/*": "its time is virtual: a sleep takes none",
    },
}

# Modules that a pure module never imports: each is a door to the world.
IMPURE: Final = frozenset(
    {
        "aiohttp",
        "asyncio",
        "concurrent",
        "fcntl",
        "http",
        "logging",
        "mmap",
        "multiprocessing",
        "os",
        "plyvel",
        "queue",
        "random",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
        "uvloop",
    }
)
# Pure by their names; others say so by opening with `pure:`.
PURE_NAMES: Final = (
    "pegaskv/base/*.py",
    "pegaskv/codec/*.py",
    "pegaskv/*/machine.py",
    "pegaskv/*/events.py",
    "pegaskv/*/effects.py",
)

# Seams. A module named here may be imported only where the rule allows.
SEAM_MODULES: Final[Mapping[str, str]] = {
    "time": "clock",
    "secrets": "chance",
    "fcntl": "files",
    "mmap": "files",
    "shutil": "files",
    "tempfile": "files",
    "select": "network",
    "selectors": "network",
    "socket": "network",
    "urllib.request": "network",
    "http.client": "network",
    "concurrent.futures": "threads",
    "multiprocessing": "threads",
    "queue": "threads",
    "threading": "threads",
    "signal": "process",
    "subprocess": "process",
}
# A dotted name or a method that goes round a seam, wherever it is called or handed on.
SEAM_NAMES: Final[Mapping[str, str]] = {
    "asyncio.sleep": "clock",
    "asyncio.timeout": "clock",
    "asyncio.timeout_at": "clock",
    "asyncio.wait_for": "clock",
    "datetime.datetime.now": "clock",
    "datetime.datetime.today": "clock",
    "datetime.datetime.utcnow": "clock",
    "datetime.date.today": "clock",
    "uuid.uuid1": "chance",
    "uuid.uuid4": "chance",
    "open": "files",
    "io.open": "files",
    "pathlib.Path.cwd": "files",
    "pathlib.Path.home": "files",
    "asyncio.open_connection": "network",
    "asyncio.open_unix_connection": "network",
    "asyncio.start_server": "network",
    "asyncio.start_unix_server": "network",
    "asyncio.create_task": "tasks",
    "asyncio.ensure_future": "tasks",
    "asyncio.gather": "tasks",
    "asyncio.run": "tasks",
    "asyncio.Runner": "tasks",
    "asyncio.run_coroutine_threadsafe": "tasks",
    "asyncio.TaskGroup": "tasks",
    "asyncio.to_thread": "threads",
}
SEAM_METHODS: Final[Mapping[str, str]] = {
    "create_connection": "network",
    "create_datagram_endpoint": "network",
    "create_server": "network",
    "create_unix_connection": "network",
    "create_unix_server": "network",
    "create_task": "tasks",
    "run_in_executor": "threads",
    "add_signal_handler": "process",
    "expanduser": "files",
    "glob": "files",
    "iterdir": "files",
    "read_text": "files",
    "rglob": "files",
    "touch": "files",
    "write_bytes": "files",
    "write_text": "files",
}

# Of `os` these are arithmetic; everything else asks or changes the machine.
HARMLESS_OF_OS: Final = frozenset(
    {
        *("os.fsdecode", "os.fsencode", "os.fspath", "os.linesep", "os.path", "os.sep"),
        *("os.path.basename", "os.path.dirname", "os.path.isabs", "os.path.join"),
        *("os.path.normpath", "os.path.split", "os.path.splitext", "os.strerror"),
    }
)

# Written so that this file does not find itself.
_MACHINE_PATH: Final = re.compile(r"(?<![\w.:/<-])/(?:work|root|tmp)(?:/|\b(?!\w))")
_UNFINISHED: Final = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X|Not[I]mplementedError)\b")


class Violation(NamedTuple):
    """A broken rule and its place."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


class Source(NamedTuple):
    """A Python file as the rules see it."""

    path: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        """The file's lines, counted from 0."""
        return self.text.splitlines()

    @property
    def top(self) -> str:
        """The first folder: pegaskv, shell, tests or tools."""
        return self.path.split("/", 1)[0]


def check_tree(root: Path, allowed: Mapping[str, Mapping[str, str]] = ALLOWED) -> list[Violation]:
    """Return all violations below `root`, and the exemptions that nobody needs."""
    found: list[Violation] = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += _check_text(name, text)
        if name.endswith(".py"):
            found += check_source(name, text)
    return _apply_exemptions(found, allowed)


def check_source(path: str, text: str) -> list[Violation]:
    """Return the violations of one Python file, exemptions not yet taken off."""
    try:
        source = Source(path, text, ast.parse(text))
    except SyntaxError as error:
        return [Violation(path, error.lineno or 1, "syntax", error.msg)]
    found: list[Violation] = []
    for check in _CHECKS:
        found += check(source)
    return found


def main() -> int:
    """Check the project that this file belongs to; the exit status says whether it is tidy."""
    violations = check_tree(Path(__file__).resolve().parent.parent)
    for violation in violations:
        print(violation)
    return 1 if violations else 0


def _apply_exemptions(
    found: list[Violation], allowed: Mapping[str, Mapping[str, str]]
) -> list[Violation]:
    used: set[tuple[str, str]] = set()
    left: list[Violation] = []
    for violation in found:
        # A function's place is its file and name; the message begins with the name.
        name = violation.message.split(" ", 1)[0]
        places = (violation.path, f"{violation.path}:{name}")
        entries = allowed.get(violation.rule, {})
        matches = [entry for entry in entries if any(fnmatch(place, entry) for place in places)]
        used.update((violation.rule, entry) for entry in matches)
        if not matches:
            left.append(violation)
    for rule, entries in allowed.items():
        left += [
            Violation("tools/tidy.py", 1, "exemption", f"{rule} for {entry} is no longer needed")
            for entry in entries
            if (rule, entry) not in used
        ]
        left += [
            Violation("tools/tidy.py", 1, "exemption", f"{rule} for {entry} has no reason")
            for entry, reason in entries.items()
            if not reason.strip()
        ]
    long_functions = len(allowed.get("function-length", {}))
    if long_functions > LONG_FUNCTIONS_MAX:
        message = f"{long_functions} long functions; at most {LONG_FUNCTIONS_MAX} may be"
        left.append(Violation("tools/tidy.py", 1, "exemption", message))
    return sorted(left)


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not _is_foreign(path.name):
            yield path
    for directory in TEXT_DIRECTORIES:
        for path in sorted((root / directory).rglob("*")):
            inner = path.relative_to(root / directory).parts
            if any(_is_foreign(part) for part in inner):
                continue
            if path.is_file() and path.suffix in TEXT_SUFFIXES:
                yield path


def _is_foreign(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in NOT_OURS)


def _check_text(path: str, text: str) -> Iterator[Violation]:
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _MACHINE_PATH.search(line):
            yield Violation(path, number, "machine-path", f"{match[0]} is on one machine only")
        if match := _UNFINISHED.search(line):
            yield Violation(path, number, "unfinished", f"{match[0]}: finish it or leave it out")


def _check_lengths(source: Source) -> Iterator[Violation]:
    length = len(source.lines)
    if length > MODULE_LINES_MAX:
        message = f"{length} lines; the limit is {MODULE_LINES_MAX}"
        yield Violation(source.path, 1, "module-length", message)
    for name, function in _functions(source.tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            message = f"{name} has {length} lines; the limit is {FUNCTION_LINES_MAX}"
            yield Violation(source.path, function.lineno, "function-length", message)


def _functions(
    node: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
        inner = prefix
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{prefix}{child.name}."
        yield from _functions(child, inner)


def _check_opening(source: Source) -> Iterator[Violation]:
    # A test's file is named after what it tests; a package's `__init__` may be empty.
    if source.top == "tests" or not source.tree.body:
        return
    docstring = ast.get_docstring(source.tree)
    if not docstring:
        yield Violation(source.path, 1, "opening", "a module opens with what it is for")


def _check_purity(source: Source) -> Iterator[Violation]:
    docstring = ast.get_docstring(source.tree) or ""
    named = any(fnmatch(source.path, pattern) for pattern in PURE_NAMES)
    if not named and not docstring.startswith("pure:"):
        return
    for module, name, line in _imports(source.tree):
        # A `Random` that is given is no chance of one's own.
        if module.split(".")[0] in IMPURE and (module, name) != ("random", "Random"):
            yield Violation(source.path, line, "pure", f"{module} is no import of a pure module")


def _imports(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Yield (module, name or "", line) of all imports that happen at run time."""
    for node in _running_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name, node.lineno


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the tree without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _running_nodes(other)
            continue
        yield child
        yield from _running_nodes(child)


def _check_seams(source: Source) -> Iterator[Violation]:
    if source.top not in PRODUCTION:
        return
    known: dict[str, str] = {}
    for module, name, line in _imports(source.tree):
        if not name:
            known[module.split(".")[0]] = module.split(".")[0]
        full = f"{module}.{name}" if name else module
        names = (full, module, module.split(".")[0])
        rule = next((SEAM_MODULES[name] for name in names if name in SEAM_MODULES), None)
        if rule is not None:
            yield Violation(source.path, line, rule, f"{full} goes round a seam")
        elif name and _asks_os(full):
            yield Violation(source.path, line, "files", f"{full} goes round a seam")
        elif module == "random" and name not in ("", "Random"):
            yield Violation(source.path, line, "chance", f"{full}: a Random is given")
    known |= _names_of_imports(source.tree)
    # A sleep of 0 lets others run once, and is no clock.
    harmless = {
        node.func
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and node.args and _is_zero(node.args[0])
        if _dotted(node.func, known) == "asyncio.sleep"
    }
    for node in _running_nodes(source.tree):
        if node in harmless:
            continue
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            yield from _seam_of(source, node, known)


def _names_of_imports(tree: ast.Module) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _seam_of(
    source: Source, node: ast.Attribute | ast.Name, known: Mapping[str, str]
) -> Iterator[Violation]:
    name = _dotted(node, known)
    rule = SEAM_NAMES.get(name)
    if rule is None and isinstance(node, ast.Attribute):
        rule = SEAM_METHODS.get(node.attr)
        if _asks_os(name) and any(value.split(".")[0] == "os" for value in known.values()):
            rule = "files"
        # A parameter may be called `random`: it is the one that is given.
        if name.startswith("random.") and node.attr != "Random" and "random" in known.values():
            rule = "chance"
    if rule is not None:
        yield Violation(source.path, node.lineno, rule, f"{name} goes round a seam")


def _asks_os(name: str) -> bool:
    parts = name.split(".")
    depth = 3 if parts[:2] == ["os", "path"] else 2
    return parts[0] == "os" and len(parts) == depth and name not in HARMLESS_OF_OS


def _dotted(node: ast.expr, known: Mapping[str, str]) -> str:
    """Return the full name, as far as imports tell; `?` stands for any other expression."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, known)}.{node.attr}"
    return "?"


def _check_excepts(source: Source) -> Iterator[Violation]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "everything"
        last = node.body[-1]
        goes_on = isinstance(last, ast.Raise) and last.exc is None
        if caught not in ("everything", "Exception", "BaseException") or goes_on:
            continue
        # Until the first statement of the handler, and that line's own end.
        lines = source.lines[node.lineno - 1 : node.body[0].lineno]
        comments = [line.partition("#")[2] for line in lines]
        if not any(_is_reason(comment) for comment in comments):
            message = f"catches {caught} without a reason beside it"
            yield Violation(source.path, node.lineno, "except", message)


def _is_reason(comment: str) -> bool:
    text = re.sub(r"noqa: [A-Z0-9, ]+", "", comment)
    return len(text.split()) >= REASON_WORDS_MIN


def _check_tests(source: Source) -> Iterator[Violation]:
    if source.top != "tests":
        return
    for module, name, line in _imports(source.tree):
        if "mock" in f"{module}.{name}".split("."):
            yield Violation(source.path, line, "mock", "write a fake that passes the contract")
    for name, function in _functions(source.tree):
        last = name.rpartition(".")[2]
        words = [word for word in last.removeprefix("test_").split("_") if word]
        if last.startswith("test_") and len(words) < TEST_NAME_WORDS_MIN:
            message = f"{name} promises nothing: say what must hold"
            yield Violation(source.path, function.lineno, "test-name", message)
    known = _names_of_imports(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and _sleeps(node, known):
            yield Violation(source.path, node.lineno, "sleep", "tests/helpers.py waits for you")


def _sleeps(node: ast.Call, known: Mapping[str, str]) -> bool:
    name = _dotted(node.func, known)
    if name == "time.sleep":
        return True
    return name == "asyncio.sleep" and not (node.args and _is_zero(node.args[0]))


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


_CHECKS: Final[tuple[Callable[[Source], Iterator[Violation]], ...]] = (
    _check_lengths,
    _check_opening,
    _check_purity,
    _check_seams,
    _check_excepts,
    _check_tests,
)

if __name__ == "__main__":
    sys.exit(main())
