"""Merging a patch into a twin section together with its metadata.

The algebra is that of JSON merge patch (RFC 7396) for objects: an object merges, anything else
replaces, null deletes, what is not named stays. Metadata mirrors the section: each object and each
leaf (an array is a leaf) has a stamp of its last change, and an object's stamp is as new as the
newest change below it, so that a deletion, which leaves no leaf behind, shows in its parent
(service-apis reference §2.2). Nothing here changes its arguments.
"""

from typing import Any

Json = dict[str, Any]


def merge(section: Json, metadata: Json, patch: Json, stamp: Json) -> tuple[Json, Json]:
    """The section and metadata after `patch`; `stamp` marks what the patch names, deep or not.

    Start from two empty dicts to replace a section. The depth of `patch` must be bounded."""
    values = dict(section)
    marks = {**metadata, **stamp}
    for key, item in patch.items():
        if item is None:
            values.pop(key, None)
            marks.pop(key, None)
        elif isinstance(item, dict):
            old = values.get(key)
            if isinstance(old, dict):
                values[key], marks[key] = merge(old, marks.get(key, {}), item, stamp)
            else:
                values[key], marks[key] = merge({}, {}, item, stamp)
        else:
            values[key] = item
            marks[key] = stamp
    return values, marks


def without_reserved(patch: Json) -> Json:
    """A patch as clients echo it, without the `$version` and `$metadata` that the hub adds.

    Any other key with a `$` is left for the limits to refuse."""
    return {key: item for key, item in patch.items() if key not in ("$version", "$metadata")}
