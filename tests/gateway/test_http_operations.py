"""The table of operations: what a request line means, whatever its spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.errors import ArgumentInvalid, GenericMethodNotAllowed, GenericNotFound
from mooring.gateway.http.operations import OPERATIONS, match
from mooring.hub.identity import ID_PATTERN, Ref

IDS = st.text("abcZ09-:.+%_#*?!(),=@;$'", min_size=1, max_size=20).filter(
    lambda text: ID_PATTERN.fullmatch(text) is not None
)


def encoded(text: str) -> bytes:
    return "".join(f"%{byte:02x}" for byte in text.encode()).encode()


@given(device_id=IDS, module_id=IDS)
def test_ids_arrive_as_they_were_meant(device_id: str, module_id: str) -> None:
    path = b"/DEVICES/" + encoded(device_id) + b"/Modules/" + encoded(module_id) + b"/"
    found = match("GET", path)
    assert found.ref == Ref(device_id, module_id)
    assert found.operation.pattern == "/devices/{device_id}/modules/{module_id}"
    assert found.resource == f"devices/{device_id}/modules/{module_id}"
    assert found.path == f"/{found.resource}"


@given(path=st.binary(max_size=60), method=st.sampled_from(["GET", "PUT", "X"]))
def test_any_bytes_are_found_or_refused(path: bytes, method: str) -> None:
    try:
        found = match(method, b"/" + path)
    except (ArgumentInvalid, GenericMethodNotAllowed, GenericNotFound):
        return
    assert found.operation.method == method
    assert all(found.ids.values())


@pytest.mark.parametrize(
    ("method", "path", "pattern", "resource"),
    [
        ("POST", b"/devices/query", "/devices/~query", "devices/query"),
        ("GET", b"/devices/query", "/devices/{device_id}", "devices/query"),
        (
            "POST",
            b"/devices/keys/REGENERATE",
            "/devices/~keys/regenerate",
            "devices/keys/regenerate",
        ),
        ("GET", b"/devices/keys/modules", "/devices/{device_id}/modules", "devices/keys/modules"),
        ("GET", b"/jobs/v2/query", "/jobs/v2/query", "jobs/v2/query"),
        ("GET", b"/jobs/v2/j1", "/jobs/v2/{job_id}", "jobs/v2/j1"),
        (
            "GET",
            b"/messages/servicebound/feedback?api-version=1",
            "/messages/serviceBound/feedback",
            "messages/serviceBound/feedback",
        ),
    ],
)
def test_words_in_the_place_of_ids(method: str, path: bytes, pattern: str, resource: str) -> None:
    found = match(method, path)
    assert (found.operation.pattern, found.resource) == (pattern, resource)


def test_no_two_operations_answer_to_the_same_request() -> None:
    shapes = [
        (
            operation.method,
            *("*" if word.startswith("{") else word.lower() for word in operation.words),
        )
        for operation in OPERATIONS
    ]
    assert len(set(shapes)) == len(shapes)


def test_rights_are_checked_for_the_id_that_is_acted_on() -> None:
    found = match("GET", b"/devices/~d1")
    assert (found.ref, found.resource) == (Ref("~d1"), "devices/~d1")
    assert match("POST", b"/devices/keys/regenerate").resource == "devices/keys/regenerate"
