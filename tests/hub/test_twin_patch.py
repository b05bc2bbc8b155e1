"""The algebra of patches, against an oracle of a few lines."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mooring.hub.twin_patch import merge

STAMP = {"$lastUpdated": "now", "$lastUpdatedVersion": 7}
OLD = {"$lastUpdated": "then", "$lastUpdatedVersion": 6}

KEYS = st.sampled_from("abc")
LEAVES = st.booleans() | st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=2)


def objects(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        st.dictionaries(KEYS, leaves, max_size=3),
        lambda inner: st.dictionaries(KEYS, inner | leaves, max_size=3),
        max_leaves=8,
    )


SECTIONS = objects(LEAVES)
PATCHES = objects(LEAVES | st.none())


def rfc7396(target: Any, patch: Any) -> Any:
    """The RFC's own pseudo code."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = rfc7396(target.get(name), value)
    return target


def stamped(value: Any, stamp: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a section written at once."""
    inner = value.items() if isinstance(value, dict) else ()
    return {**stamp, **{key: stamped(item, stamp) for key, item in inner}}


@given(SECTIONS, PATCHES)
def test_values_merge_as_the_rfc_says(section: Any, patch: Any) -> None:
    assert merge(section, stamped(section, OLD), patch, STAMP)[0] == rfc7396(section, patch)


@given(SECTIONS, PATCHES)
def test_metadata_mirrors_the_section(section: Any, patch: Any) -> None:
    values, meta = merge(section, stamped(section, OLD), patch, STAMP)

    def check(value: Any, mark: Any) -> None:
        inner = value if isinstance(value, dict) else {}
        assert mark.keys() == {"$lastUpdated", "$lastUpdatedVersion", *inner}
        for key, item in inner.items():
            check(item, mark[key])

    check(values, meta)


@given(SECTIONS, PATCHES)
def test_a_stamp_is_new_where_the_patch_went(section: Any, patch: Any) -> None:
    values, meta = merge(section, stamped(section, OLD), patch, STAMP)

    def check(value: Any, mark: Any, named: Any, touched: bool) -> None:
        assert mark["$lastUpdatedVersion"] == (7 if touched else 6)
        for key, item in value.items() if isinstance(value, dict) else ():
            inner = isinstance(named, dict) and key in named
            check(item, mark[key], named[key] if inner else None, inner)

    check(values, meta, patch, True)


@given(SECTIONS)
def test_onto_nothing_is_a_replacement(section: Any) -> None:
    assert merge({}, {}, section, STAMP) == (section, stamped(section, STAMP))


@given(SECTIONS, PATCHES)
def test_twice_is_once(section: Any, patch: Any) -> None:
    once = merge(section, stamped(section, OLD), patch, STAMP)
    assert merge(*once, patch, STAMP) == once


@given(SECTIONS, PATCHES)
def test_arguments_stay_as_they_are(section: Any, patch: Any) -> None:
    meta = stamped(section, OLD)
    before = copy.deepcopy((section, meta, patch))
    merge(section, meta, patch, STAMP)
    assert (section, meta, patch) == before
