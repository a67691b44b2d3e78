"""Where the shell finds its settings: profiles, environment, XDG directories.

A profile is a cluster with a name. `conf/shell.toml` shows every key with its default;
the file that is read is `--config FILE`, or `pegaskv/shell.toml` in the XDG configuration
directory. What is nearer wins: a flag, the profile, the environment, the file's
`[shell]` section, the default.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.limits import TIMEOUT_MS_MAX
from pegaskv.base.options import nearest, options_from_mapping
from shell.errors import UsageError

__all__ = [
    "Settings",
    "ShellOptions",
    "choose_options",
    "config_path",
    "history_path",
    "read_settings",
]


@dataclass(frozen=True, slots=True)
class ShellOptions:
    """What a session begins with; the keys of `[shell]` and of each `[profiles.NAME]`."""

    # Meta servers, HOST:PORT[,HOST:PORT...].
    cluster: str = "127.0.0.1:34601"
    # How long one operation may take.
    timeout_ms: int = 5_000
    # The table in use at the start; "" = none.
    table: str = ""

    def validate(self) -> None:
        """Raise `ConfigurationError` for a value that cannot be."""
        if not 1 <= self.timeout_ms <= TIMEOUT_MS_MAX:
            raise ConfigurationError(f"timeout_ms must be 1 to {TIMEOUT_MS_MAX}")
        if not self.cluster:
            raise ConfigurationError("cluster is empty", hint="write HOST:PORT[,HOST:PORT...]")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration file says. `given` are the keys that `[shell]` names itself."""

    shell: ShellOptions = field(default_factory=ShellOptions)
    given: frozenset[str] = frozenset()
    profiles: Mapping[str, ShellOptions] = field(default_factory=dict)


def config_path(environment: Mapping[str, str]) -> Path:
    """Return where the configuration file is looked for."""
    return _xdg(environment, "XDG_CONFIG_HOME", ".config") / "pegaskv" / "shell.toml"


def history_path(environment: Mapping[str, str]) -> Path:
    """Return the file that keeps the lines typed at the prompt."""
    return _xdg(environment, "XDG_STATE_HOME", ".local/state") / "pegaskv" / "shell_history"


def _xdg(environment: Mapping[str, str], name: str, default: str) -> Path:
    # The specification says that a relative path is to be ignored.
    given = environment.get(name, "")
    if given.startswith("/"):
        return Path(given)
    return Path(environment.get("HOME") or "/") / default


def read_settings(path: Path, *, required: bool) -> Settings:
    """Read the file at `path`; when it is not there and not `required`, the defaults hold.

    Raises:
        UsageError: it cannot be read, is no TOML, or has a key that is unknown or wrong.

    """
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if not required:
            return Settings()
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"cannot read {path}: {reason}") from None
    # Imported here: most runs of the shell have no file to read.
    import tomllib

    try:
        return _settings(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from None
    except ConfigurationError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def _settings(content: Mapping[str, Any]) -> Settings:
    for section in content:
        if section not in ("shell", "profiles"):
            raise ConfigurationError(
                f"unknown section [{section}]", hint="known: [shell], [profiles.NAME]"
            )
    given = _section(content, "shell")
    shell = options_from_mapping(ShellOptions, given, section="shell")
    profiles = {}
    for name in _section(content, "profiles"):
        values = _section(content["profiles"], name, shown=f"profiles.{name}")
        # A profile inherits from [shell] what it does not say itself.
        merged = asdict(shell) | dict(values)
        profiles[name] = options_from_mapping(ShellOptions, merged, section=f"profiles.{name}")
    return Settings(shell, frozenset(given), profiles)


def _section(content: Mapping[str, Any], name: str, *, shown: str = "") -> Mapping[str, Any]:
    section = content.get(name, {})
    if not isinstance(section, Mapping):
        raise ConfigurationError(f"`{shown or name}` must be a section, [{shown or name}]")
    return section


def choose_options(
    settings: Settings,
    *,
    profile: str | None,
    cluster: str | None,
    environment: Mapping[str, str],
) -> ShellOptions:
    """Return what the session begins with.

    Raises:
        UsageError: no profile has that name.

    """
    options = settings.shell
    if profile is not None:
        if profile not in settings.profiles:
            guess = nearest(profile, list(settings.profiles))
            known = ", ".join(settings.profiles) or "none"
            raise UsageError(
                f"no profile is called {profile}",
                hint=f"did you mean `{guess}`?" if guess else f"known profiles: {known}",
            )
        options = settings.profiles[profile]
    elif environment.get("PEGASKV_CLUSTER"):
        cluster = cluster or environment["PEGASKV_CLUSTER"]
    if cluster:
        options = ShellOptions(cluster, options.timeout_ms, options.table)
    return options
