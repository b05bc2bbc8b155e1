"""What a twin section may hold (service-apis reference §2.4), checked on the whole result.

A section is `tags`, `desired` or `reported`, a JSON object whose own level is 0. A container
below it, object or array, is one level deeper than what holds it; `max_depth` levels are allowed.
Null deletes where a patch merges, so a section holds none, and arrays, which replace one another
as a whole, hold none either.
"""

import re
from typing import Any, Final

from mooring.errors import ArgumentInvalid

from .settings import HubSettings

MIN_INTEGER: Final = -4503599627370496
MAX_INTEGER: Final = 4503599627370495
NUMBER_SIZE: Final = 8
BOOLEAN_SIZE: Final = 4

# C0 and C1 control characters, and what paths and the query language give a meaning to.
_FORBIDDEN_IN_KEYS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f.$ ]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_section(name: str, section: dict[str, Any], settings: HubSettings) -> None:
    """Raise `ArgumentInvalid` if a section breaks a limit; the message names section and rule.

    Its size is that of its keys and texts in characters, controls left out, plus 8 for each
    number and 4 for each boolean."""
    limit = settings.max_tags if name == "tags" else settings.max_properties
    size = _size(name, section, settings, 0)
    if size > limit:
        raise ArgumentInvalid(f"The size of '{name}' is {size}, at most {limit} is allowed.")


def check_depth(name: str, value: Any, settings: HubSettings) -> None:
    """Raise `ArgumentInvalid` if a patch is deeper than any section may be.

    Done before merging, which is recursive. A patch that passes can still give a section that
    does not: the limit holds for the result too."""
    level = [value]
    for _ in range(settings.max_twin_depth + 1):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise _too_deep(name, settings)


def _size(name: str, value: Any, settings: HubSettings, depth: int) -> int:
    if isinstance(value, str):
        if len(value.encode()) > settings.max_twin_string:
            raise ArgumentInvalid(
                f"'{name}' has a text longer than {settings.max_twin_string} bytes."
            )
        return len(_CONTROL.sub("", value))
    if isinstance(value, bool):
        return BOOLEAN_SIZE
    if isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise ArgumentInvalid(
                f"'{name}' has an integer outside of {MIN_INTEGER} … {MAX_INTEGER}."
            )
        return NUMBER_SIZE
    if isinstance(value, float):
        return NUMBER_SIZE
    if depth > settings.max_twin_depth:
        raise _too_deep(name, settings)
    if isinstance(value, dict):
        size = 0
        for key, item in value.items():
            _check_key(name, key, settings)
            size += len(key) + _size(name, item, settings, depth + 1)
        return size
    if isinstance(value, list):
        return sum(_size(name, item, settings, depth + 1) for item in value)
    raise ArgumentInvalid(f"'{name}' has a null inside of an array.")


def _check_key(name: str, key: str, settings: HubSettings) -> None:
    if not key:
        raise ArgumentInvalid(f"'{name}' has an empty key.")
    if len(key.encode()) > settings.max_twin_key:
        raise ArgumentInvalid(f"'{name}' has a key longer than {settings.max_twin_key} bytes.")
    if _FORBIDDEN_IN_KEYS.search(key):
        raise ArgumentInvalid(f"'{name}' has a key with a control character, '.', '$' or a space.")


def _too_deep(name: str, settings: HubSettings) -> ArgumentInvalid:
    return ArgumentInvalid(f"'{name}' is deeper than {settings.max_twin_depth} levels.")
