"""`mooring consumer-group …`: the event log's consumer groups."""

from typing import Annotated

import typer

from .control import Control
from .options import DEFAULT_DATA, AsJson, Data, HubName
from .output import print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="List, create and delete consumer groups.")

GroupArgument = Annotated[str, typer.Argument(metavar="NAME", help="The group's name.")]


@app.command("list")
def list_(as_json: AsJson = False, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """List consumer groups; `$Default` is always there."""
    groups = Control(data, hub).control("GET", "consumer-groups")
    if as_json:
        print_json(groups)
        return
    print_table(("CONSUMER GROUP",), ([name] for name in groups), empty="there is none")


@app.command("create")
def create(name: GroupArgument, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """Create a consumer group."""
    Control(data, hub).control("PUT", "consumer-groups", name)
    say(f"created {name}")


@app.command("delete")
def delete(name: GroupArgument, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """Delete a consumer group."""
    Control(data, hub).control("DELETE", "consumer-groups", name)
    say(f"deleted {name}")
