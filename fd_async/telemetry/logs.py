"""Logging: short lines for people, JSON lines for tools, other libraries kept quiet.

    fd_async loggers ──▶ console (stderr)                  `level` and above; warnings only under the live view
                     └─▶ logs/PROCESS.jsonl                `level` and above, everything that was bound
    all other loggers ─▶ logs/third_party.log              warnings and above

Invariants:
    * Handlers run in a thread of their own: a slow disk or a paused terminal never blocks the event loop.
    * No record leaves without `redact`: values of secret environment variables and Authorization headers are removed.
"""

from __future__ import annotations

import atexit
import logging
import queue
import sys
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fd_async.telemetry.redact import protect_environment, redact

OWN = "fd_async"
NOISY = (
    "vllm",
    "DeepSpeed",
    "deepspeed",
    "transformers",
    "huggingface_hub",
    "torch",
    "httpx",
    "httpx2",
    "httpcore",
    "aiohttp",
    "asyncio",
    "anthropic",
    "openai",
    "filelock",
    "urllib3",
)
_current: LogSetup | None = None


class LogSetup:
    """What `setup_logging` started. `close` writes what is queued and removes the handlers; also done at exit."""

    def __init__(self, listener: QueueListener, handlers: list[logging.Handler]) -> None:
        self._listener: QueueListener | None = listener
        self._handlers = handlers

    def close(self) -> None:
        """Flush and detach; a second call does nothing."""
        if self._listener is None:
            return
        self._listener.stop()
        self._listener = None
        for logger in (logging.getLogger(), logging.getLogger(OWN)):
            for handler in [h for h in logger.handlers if isinstance(h, _Queue)]:
                logger.removeHandler(handler)
        for handler in self._handlers:
            handler.close()


def setup_logging(run_dir: Path | None, level: str, live: bool = False, process: str = "controller") -> LogSetup:
    """Configure logging of this process; called again, it replaces the earlier set-up.

    Args:
        run_dir: The run's folder; None logs to the console alone.
        level: `debug`, `info`, `warning` or `error`.
        live: A live view owns the terminal: only warnings are written above it.
        process: Names the JSON file. Every process but `controller` keeps off the console.
    """
    global _current
    if _current is not None:
        _current.close()
    protect_environment()
    own: list[logging.Handler] = []
    other: list[logging.Handler] = []
    number = logging.getLevelNamesMapping()[level.upper()]
    if process == "controller":
        own.append(_console(max(number, logging.WARNING) if live else number))
    if run_dir is not None:
        folder = run_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        own.append(_file(folder / f"{process}.jsonl", _JSON, number))
        other.append(_file(folder / "third_party.log", _PLAIN, logging.WARNING))
    listener = _start(own, other, number)
    _current = LogSetup(listener, own + other)
    atexit.register(_current.close)
    return _current


class _Queue(QueueHandler):
    """Hands records over unrendered: the listener's handlers each render them their own way."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Looks `sys.stderr` up for each record, since a live view replaces it while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _File(logging.FileHandler):
    """Says once that the file cannot be written, instead of a traceback for each record."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"{self.baseFilename}: log lines are lost: {sys.exception()}\n")


class _Redacting(logging.Formatter):
    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redact(self._inner.format(record))


def _to_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.format_exc_info,
]
# Tracebacks are made where the exception is: the listener's thread has none.
_STRIP = structlog.stdlib.ProcessorFormatter.remove_processors_meta
_JSON = structlog.stdlib.ProcessorFormatter(
    processors=[
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _STRIP,
        _to_json,
    ],
    foreign_pre_chain=_SHARED,
)
_PLAIN = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def _console(level: int) -> logging.Handler:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        pad_level=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
    handler = _StderrHandler()
    handler.setLevel(level)
    handler.setFormatter(
        _Redacting(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
                    _drop_logger_name,
                    _STRIP,
                    renderer,
                ],
                foreign_pre_chain=_SHARED,
            )
        )
    )
    return handler


def _drop_logger_name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.pop("logger", None)
    return event


def _file(path: Path, formatter: logging.Formatter, level: int) -> logging.Handler:
    handler = _File(path, encoding="utf-8", delay=True)
    handler.setLevel(level)
    handler.setFormatter(_Redacting(formatter))
    return handler


def _start(own: list[logging.Handler], other: list[logging.Handler], level: int) -> QueueListener:
    """Route records of both kinds of logger through one queue and one thread."""
    for handler in own:
        handler.addFilter(lambda record: record.name.split(".")[0] == OWN)
    for handler in other:
        handler.addFilter(lambda record: record.name.split(".")[0] != OWN)
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    ours, root = logging.getLogger(OWN), logging.getLogger()
    ours.setLevel(level)
    ours.propagate = False
    root.setLevel(logging.WARNING)
    for logger in (ours, root):
        logger.addHandler(_Queue(records))  # type: ignore[arg-type]
    for name in NOISY:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    listener = QueueListener(records, *own, *other, respect_handler_level=True)  # type: ignore[arg-type]
    listener.start()
    return listener
