"""Shared access signatures: the tokens that devices and back ends prove themselves with.

    SharedAccessSignature sr={scope}&sig={signature}&se={expiry}[&skn={policy}]

signature = base64(HMAC-SHA256(key, sr + "\n" + se)), percent-encoded. Rules of this file:

- Parsing and the arithmetic only. Whose key it is, whether `se` has passed and whether the scope
  grants anything is decided behind `hub.access`.
- `sr` is kept as it was written: clients sign their own spelling of it (upper or lower case hex,
  encoded or not), so verification starts from the raw text (device-protocols reference §2).
- No signature and no key in a repr or an error message.
"""

import base64
import binascii
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from .errors import WireError

MAX_LENGTH = 4096
"""Characters of a token; the longest legal one (ids of 128 characters, doubly encoded) is half."""

_PREFIX = "sharedaccesssignature "
_FIELDS = frozenset({"sr", "sig", "se", "skn"})
_DIGEST_SIZE = 32
_MAX_EXPIRY_DIGITS = 15
_SCHEMES = ("sb://", "amqps://", "amqp://", "https://", "wss://", "mqtts://")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token's `sr` names: a host, and path segments under it (none: all of the hub)."""

    host: str
    segments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((self.host, *self.segments))


@dataclass(frozen=True, slots=True)
class Token:
    """One parsed token; nothing about it is proved yet."""

    resource: str
    """`sr` exactly as it stood in the token."""
    expiry: str
    """`se` exactly as it stood in the token."""
    signature: bytes = field(repr=False)
    policy: str = ""
    """`skn`: the shared access policy whose key signed; empty for an identity's own key."""

    @property
    def expires(self) -> int:
        """Unix seconds after which the token is void."""
        return int(self.expiry)

    @property
    def scope(self) -> Scope:
        """The scope that it claims. Raises WireError if `sr` names no host."""
        return parse_scope(unquote(self.resource))

    def strings_to_sign(self) -> Iterator[str]:
        """What the signer may have signed, most likely first, without repetition.

        The raw `sr`; the decoded one; the decoded one encoded again with upper and with lower case
        hex, as tools do that encode for signing and differently for the header."""
        decoded = unquote(self.resource)
        upper = quote(decoded, safe="")
        seen: set[str] = set()
        for resource in (self.resource, decoded, upper, _lower_hex(upper)):
            if resource not in seen:
                seen.add(resource)
                yield f"{resource}\n{self.expiry}"


def parse(text: str) -> Token:
    """A token from its text. Raises WireError if it is not one.

    Fields may come in any order, each at most once; others than sr, sig, se and skn are refused,
    as the official clients refuse them (azure-iot-device 2.14, sastoken.py)."""
    if len(text) > MAX_LENGTH:
        raise WireError("the token is longer than a shared access signature can be")
    if text[: len(_PREFIX)].lower() != _PREFIX:
        raise WireError("the token does not begin with 'SharedAccessSignature '")
    fields: dict[str, str] = {}
    for part in text[len(_PREFIX) :].strip().split("&"):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or name not in _FIELDS:
            raise WireError("the token has a field other than sr, sig, se and skn")
        if name in fields:
            raise WireError(f"the token has the field {name} twice")
        fields[name] = value
    for name in ("sr", "sig", "se"):
        if not fields.get(name):
            raise WireError(f"the token lacks the field {name}")
    expiry = fields["se"]
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _MAX_EXPIRY_DIGITS):
        raise WireError("the token's se is not a whole number of seconds")
    try:
        signature = base64.b64decode(unquote(fields["sig"]), validate=True)
    except ValueError as error:
        raise WireError("the token's sig is not base64") from error
    if len(signature) != _DIGEST_SIZE:
        raise WireError("the token's sig is not an HMAC-SHA256")
    try:
        policy = unquote(fields.get("skn", ""), errors="strict")
        unquote(fields["sr"], errors="strict").encode()
    except UnicodeError as error:
        raise WireError("the token's sr or skn is not UTF-8") from error
    return Token(fields["sr"], expiry, signature, policy)


def parse_scope(text: str) -> Scope:
    """The scope that a decoded `sr`, or an audience of AMQP's CBS, names.

    The scheme and port are dropped, the host is lower-cased, and so is dropped a last segment
    `api-version=…` which some tools append. Raises WireError if there is no host."""
    lowered = text.lower()
    for scheme in _SCHEMES:
        if lowered.startswith(scheme):
            text = text[len(scheme) :]
            break
    host, *segments = text.split("/")
    host = host.lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    if not host:
        raise WireError("the token's sr names no host")
    path = [segment for segment in segments if segment]
    if path and path[-1].lower().lstrip("?").startswith("api-version="):
        path.pop()
    return Scope(host, tuple(path))


def verify(token: Token, key: str, *, raw_text: bool = False) -> bool:
    """Whether `key`, as it is shown to people, made the token's signature.

    IoT Hub's clients decode the key from base64 first; Event Hubs' take its text as it stands,
    which is tried too if `raw_text` is set. Each comparison takes constant time."""
    return any(
        hmac.compare_digest(_digest(secret, text), token.signature)
        for secret in _readings(key, raw_text=raw_text)
        for text in token.strings_to_sign()
    )


def generate(
    key: str, resource: str, expires: int, *, policy: str = "", raw_text: bool = False
) -> str:
    """A token for `resource` (not encoded yet: `host/devices/d1`), as the official clients make it.

    `expires` is in unix seconds. Raises WireError if the key is not base64 and `raw_text` is not
    set."""
    if raw_text:
        secret = key.encode()
    else:
        try:
            secret = base64.b64decode(key, validate=True)
        except ValueError as error:
            raise WireError("the key is not base64") from error
    encoded = quote(resource, safe="")
    signature = base64.b64encode(_digest(secret, f"{encoded}\n{expires}"))
    token = f"SharedAccessSignature sr={encoded}&sig={quote(signature, safe='')}&se={expires}"
    return f"{token}&skn={quote(policy, safe='')}" if policy else token


def _digest(secret: bytes, text: str) -> bytes:
    return hmac.digest(secret, text.encode("utf-8", "surrogatepass"), "sha256")


def _readings(key: str, *, raw_text: bool) -> Iterator[bytes]:
    try:
        yield base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        pass
    if raw_text:
        yield key.encode()


def _lower_hex(encoded: str) -> str:
    head, *rest = encoded.split("%")
    return head + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)
