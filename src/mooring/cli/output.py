"""How commands speak: tables for people, JSON for scripts, errors on standard error."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A table, or the sentence `empty` (on standard error) when there is no row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    if table.row_count:
        _print(table)
    else:
        say(empty)


def print_fields(fields: Mapping[str, Any]) -> None:
    """One line a field; those without a value are left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], ()):
            table.add_row(name, _cell(value))
    _print(table)


def say(text: str) -> None:
    """A remark for people, on standard error so that scripts do not read it."""
    print(text, file=sys.stderr)


def complain(text: str) -> None:
    """An error."""
    say(f"mooring: {text}")


def _print(table: Table) -> None:
    # A pipe has no width; a table that is folded to 80 columns there is of no use to grep.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _cell(value: Any) -> Text:
    """What is shown of a value: no markup, and nothing that a terminal would obey."""
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    else:
        text = "" if value is None else str(value)
    return Text("".join(each if each.isprintable() else repr(each)[1:-1] for each in text))
