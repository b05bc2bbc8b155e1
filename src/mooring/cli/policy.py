"""`mooring policy …`: shared access policies, the hub-level keys of back ends."""

from enum import StrEnum
from typing import Annotated

import typer

from .control import Control
from .options import DEFAULT_DATA, AsJson, Data, HubName
from .output import print_json, print_table, say

app = typer.Typer(no_args_is_help=True, help="List shared access policies and renew their keys.")


class Slot(StrEnum):
    """Which of a policy's keys."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


@app.command("list")
def list_(as_json: AsJson = False, hub: HubName = None, data: Data = DEFAULT_DATA) -> None:
    """List policies and their rights; `mooring connection-string --policy` prints a key."""
    policies = Control(data, hub).control("GET", "policies")
    if as_json:
        print_json(policies)
        return
    print_table(
        ("POLICY", "RIGHTS"),
        ([each["name"], each["rights"]] for each in policies),
        empty="there is no policy",
    )


@app.command("regenerate")
def regenerate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")],
    slot: Annotated[
        Slot, typer.Option("--key", metavar="primary|secondary", help="Which key to replace.")
    ] = Slot.PRIMARY,
    hub: HubName = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Replace one key; sessions that it opened end at once, those of the other go on."""
    Control(data, hub).control("POST", "policies", name, "regenerate", body={"key": slot.value})
    say(f"{name} has a new {slot.value} key; see: mooring connection-string --policy {name}")
