"""Sets up structlog: one event a line on standard error, for people or for machines.

Rules. Events are short plain phrases with key-values; a refusal carries `tracking_id`, the one
that the client was told. No key, token, password or message body is ever logged, so tracebacks
show no variables. Messages of the standard library's logging (uvicorn, alembic, asyncio) come out
in the same form. Names and reasons may hold what a stranger sent: control characters are escaped
in either form. A line that cannot be written is lost and stops nobody: the disk that is full may
be the log's as well.
"""

import contextlib
import logging
import sys
from io import StringIO
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from .config import Log

# What others log at INFO is of no use to an operator.
_QUIET = ("alembic", "asyncio", "httpx", "httpcore", "litestar", "sqlalchemy", "uvicorn")


def set_up(settings: Log, stream: TextIO | None = None) -> None:
    """Configure structlog and the standard library's logging; once, before anything is logged."""
    out = stream if stream is not None else sys.stderr
    terminal = out.isatty()
    console = settings.format == "console" or (settings.format == "auto" and terminal)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last: list[Processor]
    if console:
        last = [
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=terminal, timestamp_key="time", exception_formatter=_traceback
            ),
        ]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*first, structlog.processors.StackInfoRenderer(), *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_NamedLoggers(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _Quoted:
    """A text that is shown with escapes and in quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _escape(logger: Any, method: str, entry: EventDict) -> EventDict:
    """Keep a terminal from obeying what it shows; JSON is escaped anyway."""
    for name, value in entry.items():
        if isinstance(value, str) and not value.isprintable():
            entry[name] = _Quoted(value)
    return entry


def _traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """structlog's own choice would show local variables, and with them keys and tokens."""
    plain = StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    lines = plain.getvalue().split("\n")
    out.write("\n".join(line if line.isprintable() else repr(line) for line in lines))


class _Lines:
    """A stream that drops what it cannot write."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._out.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._out.flush()


class _NamedLoggers:
    """Makes the loggers that write to `out`; the name that a module passes is not printed."""

    def __init__(self, out: TextIO) -> None:
        self._out = cast(TextIO, _Lines(out))

    def __call__(self, *_: Any) -> structlog.WriteLogger:
        return structlog.WriteLogger(self._out)
