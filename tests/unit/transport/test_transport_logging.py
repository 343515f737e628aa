"""Logging of a process: one format, and a rate limit for libraries."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from fluxpool_transport.process.logging_setup import RepeatedMessageFilter, configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("aiokafka", "httpx", "httpcore")}
    yield
    root.handlers, root.level = handlers, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def _configured(*, json_lines: bool | None = None, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(service="worker", json=json_lines, level=level, stream=stream)
    return stream


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_own_events_are_json_lines_with_service_level_and_fields() -> None:
    stream = _configured()
    structlog.get_logger("fluxpool_worker.agent").bind(pool="standard").info("task_taken", partition=3)
    (line,) = _lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "task_taken",
        "pool": "standard",
        "partition": 3,
        "service": "worker",
        "level": "info",
        "logger": "fluxpool_worker.agent",
    }


def test_library_messages_have_the_same_format() -> None:
    stream = _configured()
    logging.getLogger("uvicorn.error").warning("listening on %s", "port 1")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["logger"], line["service"]) == (
        "listening on port 1",
        "warning",
        "uvicorn.error",
        "worker",
    )


def test_a_terminal_gets_readable_lines() -> None:
    stream = _configured(json_lines=False)
    structlog.get_logger("fluxpool_worker").info("task_taken", partition=3)
    assert "task_taken" in stream.getvalue()
    assert "partition=3" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize("json_lines", [True, False])
def test_tracebacks_have_no_local_variables(json_lines: bool) -> None:
    stream = _configured(json_lines=json_lines)
    secret = "hush" + "-hush"
    try:
        raise KeyError(len(secret))
    except KeyError:
        structlog.get_logger("fluxpool_worker").exception("task_failed")
        logging.getLogger("kopf").exception("library failed")
    assert stream.getvalue().count("Traceback (most recent call last)") == 2
    assert "hush-hush" not in stream.getvalue()


def test_repeated_library_messages_are_suppressed() -> None:
    stream = _configured()
    for number in range(500):
        logging.getLogger("aiokafka.conn").error("Unable to connect to %s", number)
        structlog.get_logger("fluxpool_worker").info("own_event", number=number)
    events = [line["event"] for line in _lines(stream)]
    assert events.count("Unable to connect to 0") == 1
    assert sum(event.startswith("Unable") for event in events) == 1
    assert events.count("own_event") == 500


def _record(template: str, *arguments: object, level: int = logging.ERROR) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", level, __file__, 1, template, arguments, None)


def test_after_the_interval_one_message_has_the_number_suppressed() -> None:
    now = [0.0]
    quota = RepeatedMessageFilter(interval_seconds=30, clock=lambda: now[0])
    assert quota.filter(_record("lost %s", 1))
    assert not any(quota.filter(_record("lost %s", number)) for number in range(7))
    assert quota.filter(_record("found %s", 1))
    assert quota.filter(_record("lost %s", 1, level=logging.WARNING))
    now[0] = 30.0
    later = _record("lost %s", 8)
    assert quota.filter(later)
    assert later.__dict__["suppressed"] == 7
    now[0] = 60.0
    again = _record("lost %s", 9)
    assert quota.filter(again)
    assert "suppressed" not in again.__dict__


def test_the_count_of_suppressed_messages_is_written() -> None:
    stream = _configured()
    logging.getLogger("kopf").warning("lost", extra={"suppressed": 7, "other": 1})
    (line,) = _lines(stream)
    assert line["suppressed"] == 7
    assert "other" not in line


def test_messages_without_a_template_are_distinguished() -> None:
    quota = RepeatedMessageFilter()
    assert quota.filter(_record("%s", "one"))
    assert quota.filter(_record("%s", "two"))
    assert not quota.filter(_record("%s", "one"))


def test_verbose_libraries_are_logged_at_debug_level_only() -> None:
    stream = _configured()
    logging.getLogger("aiokafka.group").info("joined")
    assert stream.getvalue() == ""
    stream = _configured(level="debug")
    logging.getLogger("aiokafka.group").info("joined")
    assert [line["event"] for line in _lines(stream)] == ["joined"]


def test_the_level_applies_to_own_events() -> None:
    stream = _configured(level="warning")
    structlog.get_logger("fluxpool_worker").info("quiet")
    structlog.get_logger("fluxpool_worker").warning("loud")
    assert [line["event"] for line in _lines(stream)] == ["loud"]


def test_context_variables_and_odd_values_are_written() -> None:
    stream = _configured()
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        structlog.get_logger("fluxpool_worker").info("odd", value=object, text="\ud800")
    (line,) = _lines(stream)
    assert (line["request_id"], line["value"]) == ("req-1", "<class 'object'>")


def test_warnings_of_libraries_are_logged() -> None:
    stream = _configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old spelling", UserWarning, stacklevel=1)
    assert any("old spelling" in line["event"] for line in _lines(stream))


def test_an_unknown_level_is_refused_with_the_choice() -> None:
    with pytest.raises(ValueError, match="'loud' is not one of debug, info, warning, error"):
        configure_logging(service="worker", level="loud")
