"""The log: what a line holds, in either form."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from mooring import log
from mooring.config import Log


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Other tests log as if nothing had been set up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_one_json_object_a_line() -> None:
    out = io.StringIO()
    log.set_up(Log(), out)
    structlog.get_logger("mooring.test").warning("refused", tracking_id="t", device="d1")
    (line,) = out.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {"event": "refused", "level": "warning", "tracking_id": "t", "device": "d1"}


def test_an_exception_is_one_line_too() -> None:
    out = io.StringIO()
    log.set_up(Log(), out)
    try:
        raise ValueError("because")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: because" in json.loads(line)["exception"]


def test_libraries_log_in_the_same_form() -> None:
    out = io.StringIO()
    log.set_up(Log(), out)
    logging.getLogger("a.dependency").warning("took %d s", 3)
    entry = json.loads(out.getvalue())
    assert (entry["event"], entry["logger"]) == ("took 3 s", "a.dependency")


def test_the_level_holds() -> None:
    out = io.StringIO()
    log.set_up(Log(level="warning"), out)
    structlog.get_logger().info("chatter")
    logging.getLogger("a.dependency").info("chatter")
    assert out.getvalue() == ""


def test_console_lines_are_for_people() -> None:
    out = io.StringIO()
    log.set_up(Log(format="console"), out)
    structlog.get_logger().info("serving", hub="localhost")
    text = out.getvalue()
    assert "serving" in text
    assert "hub=localhost" in text
    assert not text.startswith("{")


@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_show_no_variables(form: Literal["console", "json"]) -> None:
    out = io.StringIO()
    log.set_up(Log(format=form), out)
    try:
        _fail("s" + "ecret")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("a.dependency").exception("failed too")
    text = out.getvalue()
    assert text.count("ValueError: because") == 2
    assert "secret" not in text


def _fail(key: str) -> None:
    """Its argument stands in no line of source that a traceback quotes."""
    raise ValueError("because") if key else AssertionError


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_strangers_send_cannot_forge_a_line_or_speak_to_the_terminal(
    form: Literal["console", "json"],
) -> None:
    out = io.StringIO()
    log.set_up(Log(format=form), out)
    structlog.get_logger().info("refused", reason="x\x1b[2Jx", device="a\nb", tracking_id="t")
    logging.getLogger("a.dependency").warning("about %s", "a\nb\x1b[2J")
    try:
        raise ValueError("a\x1b[2Jb")
    except ValueError:
        structlog.get_logger().exception("failed")
    text = out.getvalue()
    assert "\x1b" not in text
    assert "a\nb" not in text


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log.set_up(Log(), Full())
    structlog.get_logger().error("state_unavailable")
