"""What `device` and `module` commands have in common: building and showing registry documents."""

from collections.abc import Sequence
from enum import StrEnum
from shlex import quote
from typing import Annotated, Any

import typer

from .control import Control, Refused
from .output import print_fields, print_json

_KEYS = ("primaryKey", "secondaryKey")
_THUMBPRINTS = ("primaryThumbprint", "secondaryThumbprint")


class Auth(StrEnum):
    """How an identity proves itself."""

    SAS = "sas"
    SELF_SIGNED = "self-signed"
    CA = "ca"


class Slot(StrEnum):
    """Which of the two keys."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    BOTH = "both"


_TYPES = {Auth.SAS: "sas", Auth.SELF_SIGNED: "selfSigned", Auth.CA: "certificateAuthority"}

AuthOption = Annotated[
    Auth | None,
    typer.Option(
        "--auth",
        metavar="sas|self-signed|ca",
        help="Proof: a shared key, a certificate's thumbprint or a certificate of a CA.",
    ),
]
ThumbprintOption = Annotated[
    list[str] | None,
    typer.Option(
        "--thumbprint",
        help="SHA-1 or SHA-256 thumbprint of a certificate; up to two.",
        metavar="HEX",
    ),
]
PrimaryKeyOption = Annotated[
    str | None,
    typer.Option("--primary-key", help="Base64 key; made if not given.", metavar="KEY"),
]
SecondaryKeyOption = Annotated[
    str | None,
    typer.Option("--secondary-key", help="Base64 key; made if not given.", metavar="KEY"),
]
RegenerateOption = Annotated[
    Slot | None,
    typer.Option(
        "--regenerate-key",
        metavar="primary|secondary|both",
        help="Make a new key; sessions of the old one end.",
    ),
]


def authentication(
    auth: Auth | None,
    thumbprints: Sequence[str] | None,
    primary_key: str | None = None,
    secondary_key: str | None = None,
) -> dict[str, Any]:
    """The registry document's `authentication`. Raises Refused for what does not fit together."""
    prints = [text.replace(":", "").upper() for text in thumbprints or ()]
    auth = auth or (Auth.SELF_SIGNED if prints else Auth.SAS)
    if auth is Auth.SELF_SIGNED and not 1 <= len(prints) <= 2:
        raise Refused(
            "--auth self-signed needs one or two --thumbprint HEX; "
            "`openssl x509 -noout -fingerprint -sha256 -in cert.pem` prints it"
        )
    if auth is not Auth.SELF_SIGNED and prints:
        raise Refused("--thumbprint goes with --auth self-signed")
    if auth is not Auth.SAS and (primary_key or secondary_key):
        raise Refused("--primary-key and --secondary-key go with --auth sas")
    if bool(primary_key) != bool(secondary_key):
        raise Refused("give both --primary-key and --secondary-key, or none and they are made")
    return {
        "type": _TYPES[auth],
        "symmetricKey": {"primaryKey": primary_key, "secondaryKey": secondary_key},
        "x509Thumbprint": dict(zip(_THUMBPRINTS, [*prints, None, None], strict=False)),
    }


def updated_authentication(
    present: dict[str, Any],
    auth: Auth | None,
    thumbprints: Sequence[str] | None,
    primary_key: str | None,
    secondary_key: str | None,
    swap_keys: bool,
) -> dict[str, Any]:
    """`present` with the changes asked for."""
    if auth is None and not thumbprints and not (primary_key or secondary_key):
        changed = dict(present)
    else:
        keys = present.get("symmetricKey") or {}
        if primary_key or secondary_key:
            primary_key = primary_key or keys.get("primaryKey")
            secondary_key = secondary_key or keys.get("secondaryKey")
        changed = authentication(auth, thumbprints, primary_key, secondary_key)
    if swap_keys:
        for part, (first, second) in (("symmetricKey", _KEYS), ("x509Thumbprint", _THUMBPRINTS)):
            pair = changed.get(part) or {}
            changed[part] = {first: pair.get(second), second: pair.get(first)}
    return changed


def regenerate(control: Control, slot: Slot, device_id: str, module_id: str = "") -> None:
    """Make new keys. Raises Refused."""
    item = {"id": device_id, "moduleId": module_id} if module_id else {"id": device_id}
    which = {"primary": "primaryKey", "secondary": "secondaryKey", "both": "both"}[slot]
    answer = control.service(
        "POST", "devices", "keys", "regenerate", body={"policyKey": which, "devices": [item]}
    )
    for error in (answer or {}).get("errors") or ():
        raise Refused(f"{error.get('errorStatus') or error.get('errorCode')}")


def show(document: dict[str, Any], as_json: bool) -> None:
    """One identity. People are not shown its keys; `mooring connection-string` prints them."""
    if as_json:
        print_json(document)
        return
    auth = document.get("authentication") or {}
    prints = auth.get("x509Thumbprint") or {}
    keys = auth.get("symmetricKey") or {}
    module_id = document.get("moduleId")
    which = f"--device {quote(document['deviceId'])}"
    if module_id:
        which += f" --module {quote(module_id)}"
    print_fields(
        {
            "device": document.get("deviceId"),
            "module": module_id,
            "status": document.get("status"),
            "reason": document.get("statusReason"),
            "connection": document.get("connectionState"),
            "last activity": _time(document.get("lastActivityTime")),
            "authentication": auth.get("type"),
            "thumbprints": [prints[name] for name in _THUMBPRINTS if prints.get(name)],
            "keys": f"see: mooring connection-string {which}" if keys.get("primaryKey") else None,
            "queued messages": document.get("cloudToDeviceMessageCount"),
            "managed by": document.get("managedBy"),
            "generation": document.get("generationId"),
            "etag": document.get("etag"),
        }
    )


def _time(text: str | None) -> str | None:
    return None if not text or text.startswith("0001-") else text


def row(document: dict[str, Any]) -> list[Any]:
    """The columns that lists show after the name."""
    auth = document.get("authentication") or {}
    return [
        auth.get("type"),
        document.get("connectionState"),
        _time(document.get("lastActivityTime")),
    ]
