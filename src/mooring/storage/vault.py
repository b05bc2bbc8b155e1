"""Symmetric keys at rest: sealed with AES-256-GCM under a data key kept apart from the database.

Whoever gets hold of the database alone (a backup, a replica, a disk image) has no key of a device
or of a policy. A sealed key opens only in the place that it was sealed for (hub, table, row and
slot are authenticated with it), so that a row cannot be given another row's key.

Rules. The data key is made once, before the database; if a database is there and its data key is
not, that is an error and never a reason to make a new one. No key is in a repr or in an error.
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import CorruptRecord
from ..files import tighten, write_file
from .folder import DataFolderError

KEY_NAME = "data.key"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TITLE = b"mooring data key 1\n"


class Vault:
    """Seals and opens texts under one data key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.key_id = hashlib.sha256(b"mooring data key id\0" + key).hexdigest()[:32]
        """Names the key without telling it, so that the wrong file is recognised."""

    @classmethod
    def open_file(cls, path: Path, *, may_create: bool) -> "Vault":
        """Read the data key, or make it if it is missing and `may_create`.

        Raises DataFolderError if it is missing otherwise, or no data key."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if not may_create:
                raise DataFolderError(
                    f"{path} is missing: without it the keys in the database beside it cannot be "
                    "read; restore it from a backup"
                ) from None
            key = os.urandom(_KEY_BYTES)
            write_file(path, _TITLE + base64.b64encode(key) + b"\n")
            return cls(key)
        tighten(path)
        try:
            key = base64.b64decode(content.removeprefix(_TITLE).strip(), validate=True)
        except ValueError:
            key = b""
        if not content.startswith(_TITLE) or len(key) != _KEY_BYTES:
            raise DataFolderError(f"{path} is damaged: restore it from a backup")
        return cls(key)

    def check(self, key_id: str, path: Path) -> None:
        """Raises DataFolderError if a database was written under another key than this."""
        if key_id != self.key_id:
            raise DataFolderError(
                f"{path} is not the data key that the database beside it was written with; "
                "restore the one that belongs to it"
            )

    def seal(self, text: str, *place: str) -> str:
        """Encrypt `text` for a place; base64 text."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), _bound(place))
        return base64.b64encode(nonce + sealed).decode()

    def unseal(self, sealed: str, *place: str) -> str:
        """What was sealed for this place. Raises CorruptRecord if it was not, or under another
        data key."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            plain = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(place))
        except (InvalidTag, ValueError):
            raise CorruptRecord(f"the sealed key at {'/'.join(place)} cannot be opened") from None
        return plain.decode()


def _bound(place: tuple[str, ...]) -> bytes:
    # With lengths, or ("a", "bc") and ("ab", "c") would be one place.
    return b"".join(b"%d:%s" % (len(part := text.encode()), part) for text in place)
