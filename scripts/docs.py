"""Generate the pages of docs/ that restate the code: configuration, cli, metrics, errors.

`--check` changes nothing and fails if a page is not what the code says, so that CI notices.
"""

import sys
from pathlib import Path
from typing import Any

import typer

from mooring.cli import app
from mooring.config import CONFIG_NAME, SECTIONS, SETTINGS, Config, Setting
from mooring.errors import HubError
from mooring.gateway.metrics import Figures, NodeCollector

DOCS = Path(__file__).parent.parent / "docs"
NOTE = "<!-- Made by `make docs` from the code; change it there. -->\n"


def configuration() -> str:
    """Every setting, from the structs of mooring.config."""
    out = [
        "# Configuration\n",
        NOTE,
        "A setting comes from, each winning over the one before it:\n",
        "1. its default,",
        f"2. the file `{CONFIG_NAME}` in the data directory, or the one that `--config FILE` or",
        "   `MOORING_CONFIG` names,",
        "3. the environment: `MOORING_<SECTION>_<KEY>`, lists separated by commas,",
        "4. a flag of `mooring serve` ([cli.md](cli.md)), for those that have one.\n",
        "A key that is unknown and a value that cannot be are refused at start, with a message",
        "that names the key. Durations are seconds and sizes are bytes unless the name says",
        "otherwise. A change takes effect at the next start.\n",
        "```toml",
        "# mooring.toml",
        "production = true\n",
        "[hub]",
        'name = "hub.factory.example"\n',
        "[events]",
        "retention_days = 7",
        "```\n",
    ]
    for section in ("", *SECTIONS):
        rows = [setting for setting in SETTINGS.values() if setting.section == section]
        kind = SECTIONS.get(section, Config)
        out += [f"## `[{section}]`\n" if section else "## At the top of the file\n"]
        out += [f"{_paragraph(kind)}\n"] if section else []
        out += ["| key | default | may be | what it does |", "|---|---|---|---|"]
        out += [_row(setting) for setting in rows]
        out += [""]
    return "\n".join(out)


def _paragraph(kind: type) -> str:
    return " ".join((kind.__doc__ or "").split())


def _row(setting: Setting) -> str:
    return (
        f"| `{setting.key}` | `{_toml(setting.default)}` | {setting.allowed} "
        f"| {setting.description} |"
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if value < 1e5 else str(value)


def commands() -> str:
    """Every command's help, as `--help` prints it."""
    out = [
        "# Command line\n",
        NOTE,
        "All commands but `serve`, `exec`, `ca-certificate` and `version` act on the running hub",
        "through the private Unix socket in its data directory (`--data DIR` or `MOORING_DATA`,",
        "`./data` if neither is given). Exit status: 0 done, 1 refused or failed (standard error",
        "says why and what to do), 2 wrong usage.\n",
    ]
    for path, command in _walk(typer.main.get_command(app), "mooring"):
        out += _command(path, command)
    return "\n".join(out)


def _command(path: str, command: Any) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        # A group only says what its commands are, each of which has a section of its own.
        return [f"## `{path} …`\n", f"{command.help}\n"] if " " in path else []
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([path, "[OPTIONS]" if options else "", *map(_metavar, arguments)])
    out = [f"### `{' '.join(usage.split())}`\n", f"{command.help}\n"]
    if arguments or options:
        out += ["| | |", "|---|---|"]
        out += [f"| `{_metavar(each)}` | {each.help} |" for each in arguments]
        out += [f"| `{_spelling(each)}` | {each.help}{_origin(each)} |" for each in options]
        out += [""]
    return out


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spelling(option: Any) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    return f"{names} {_metavar(option)}".replace("|", "\\|")


def _origin(option: Any) -> str:
    return f" Or `{option.envvar}`." if option.envvar else ""


def _walk(command: Any, path: str) -> list[tuple[str, Any]]:
    found = [(path, command)]
    for name, inner in getattr(command, "commands", {}).items():
        found += _walk(inner, f"{path} {name}")
    return found


def metrics() -> str:
    """Every metric family of the node's own."""
    out = [
        "# Metrics\n",
        NOTE,
        "On the loopback port `listen.metrics_port` (9464): `/metrics` in Prometheus' text format,",
        "`/healthz` (200 while the process serves at all) and `/readyz` (200 while it serves",
        "clients, else 503 and the reasons). Beside these families there are those of",
        "`prometheus_client` for the process, the interpreter and its garbage collector.\n",
        "| metric | kind | labels | what it says |",
        "|---|---|---|---|",
    ]
    nothing = Figures(hubs=(), ports=[], commits={}, state={})
    for family in NodeCollector(lambda: nothing).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        out.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(out)


def errors() -> str:
    """Every error that a client can be told."""
    out = [
        "# Errors\n",
        NOTE,
        "What clients are told, under Azure's names. Over HTTP the name is in the header",
        "`iothub-errorcode` and the body holds message and tracking id; over AMQP the condition",
        "and description carry them. The log has the reason under the same tracking id. MQTT has",
        "no way to say more than a return code: there the log is the place to look.\n",
        "| name | code | HTTP status | AMQP condition |",
        "|---|---|---|---|",
    ]
    kinds = sorted(_subclasses(HubError), key=lambda kind: (kind.number, kind.__name__))
    out += [
        f"| {kind.__name__} | {kind.number} | {kind.number // 1000} | `{kind.condition}` |"
        for kind in kinds
    ]
    return "\n".join(out)


def _subclasses(kind: type[HubError]) -> set[type[HubError]]:
    found = set(kind.__subclasses__())
    return found.union(*(_subclasses(each) for each in found))


PAGES = {
    "configuration.md": configuration,
    "cli.md": commands,
    "metrics.md": metrics,
    "errors.md": errors,
}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for name, make in PAGES.items():
        page, text = DOCS / name, make().rstrip() + "\n"
        if page.exists() and page.read_text() == text:
            continue
        stale.append(name)
        if not check:
            page.write_text(text)
            print(f"docs/{name} written")
    if check and stale:
        print(f"not what the code says: {', '.join(stale)}; run `make docs`", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
