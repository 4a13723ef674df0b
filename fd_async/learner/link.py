"""The wire between controller and learner ranks: msgpack messages over a Unix or TCP socket, length first.

A frame is 8 bytes (big-endian length) and a msgpack body. A rank greets with `Hello`, which bears the secret of this
run. Then the controller sends `Request`s and the rank answers each with one `Reply` that bears the same `id`. The
rank's side is here: a thread reads, so that `Locate` is answered and the controller's end noticed in the middle of a
step. The controller's side is in `ranks` and `client`.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import socket
import struct
import sys
import threading
import traceback

import msgspec

from fd_async import errors
from fd_async.config.schema import RunConfig
from fd_async.types import StagedWeights, StepReport, TrainingSample

HEADER = struct.Struct(">Q")
MAX_FRAME_BYTES = 4 << 30
MAX_HELLO_BYTES = 4096
"""A greeting is read before its sender is known."""
CONNECT_S = 60.0


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of everything on the wire."""

    id: int = 0


class Start(Message, frozen=True, kw_only=True):
    """Build the model and the engine. Paths are strings; empty means none."""

    config: RunConfig
    init_from: str = ""
    resume_from: str = ""


class Step(Message, frozen=True, kw_only=True):
    """One gradient step on this rank's share of the batch."""

    step: int
    samples: list[TrainingSample]
    score_ids: list[str] = []
    """Rollouts whose token deltas are wanted."""
    gain_ids: list[str] = []
    """Rollouts on which the gain from feedback is measured."""
    anchor_ids: list[str] = []
    """Rollouts that the anchor uses, on the steps that have one."""


class Stage(Message, frozen=True, kw_only=True):
    """Score the probe and write the weights into `folder` as one flat file, or only announce them at `address`."""

    version: int
    probe_ids: list[int]
    folder: str
    address: str = ""
    """nccl://HOST:PORT where rank 0 will send them; empty for a file."""


class Send(Message, frozen=True, kw_only=True):
    """Send the announced weights from rank 0, now that the engine receives."""

    version: int
    address: str
    sender: str
    """module:class of what moves the tensors."""
    num_workers: int


class Save(Message, frozen=True, kw_only=True):
    """Copy to memory what a checkpoint of the current step needs."""


class Write(Message, frozen=True, kw_only=True):
    """Write what `Save` copied into `folder`; answered when it is on the disk. Other requests go on meanwhile."""

    folder: str


class Restore(Message, frozen=True, kw_only=True):
    """Take over weights, moments and teacher of a checkpoint folder."""

    folder: str


class Export(Message, frozen=True, kw_only=True):
    """Write a Hugging Face folder."""

    folder: str


class Locate(Message, frozen=True, kw_only=True):
    """Say what the rank is at, and print the stacks of all its threads into its log."""


class Hello(Message, frozen=True, kw_only=True):
    """A rank is connected; `id` is unused."""

    rank: int
    secret: str
    pid: int = 0
    host: str = ""


class Located(Message, frozen=True, kw_only=True):
    """Result of `Locate`: function and line where the rank's main thread is."""

    at: str


class Done(Message, frozen=True, kw_only=True):
    """The request is carried out."""


class Stepped(Message, frozen=True, kw_only=True):
    """Result of `Step`."""

    report: StepReport


class Staged(Message, frozen=True, kw_only=True):
    """Result of `Stage`; only rank 0 has weights."""

    weights: StagedWeights | None


class Saved(Message, frozen=True, kw_only=True):
    """Result of `Save`: what this rank will write, bytes."""

    num_bytes: int


class Written(Message, frozen=True, kw_only=True):
    """Result of `Write`: path inside the folder -> bytes."""

    files: dict[str, int]


class Failed(Message, frozen=True, kw_only=True):
    """The request raised; `kind` is a class of `fd_async.errors`, or another exception's name."""

    kind: str
    text: str


Request = Start | Step | Stage | Send | Save | Write | Restore | Export | Locate
Reply = Hello | Located | Done | Stepped | Staged | Saved | Written | Failed

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def encode(message: Message, request_id: int | None = None) -> bytes:
    """Return the frame of a message, header included; `request_id` replaces the message's id."""
    body = _encoder.encode(message if request_id is None else msgspec.structs.replace(message, id=request_id))
    return HEADER.pack(len(body)) + body


def decode_reply(body: bytes) -> Reply:
    """Decode what a rank sent."""
    return _replies.decode(body)


def failure(error: BaseException, request_id: int) -> Failed:
    """Describe an exception so that the controller can raise it again."""
    return Failed(id=request_id, kind=type(error).__name__, text=str(error))


def as_error(failed: Failed, rank: int) -> errors.FdError:
    """Turn a failure back into the project's exception; anything unknown becomes a LearnerError."""
    kind = getattr(errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.FdError):
        return kind(failed.text)
    return errors.LearnerError(f"learner rank {rank} failed: {failed.kind}: {failed.text}")


def keep_alive(connection: socket.socket) -> None:
    """Notice within half a minute that the other machine of a TCP connection is gone."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000)):
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class RankSocket:
    """The rank's end. Made in the main thread, which `Locate` looks at; the process ends when the controller hangs up.

    Args:
        address: HOST:PORT, or the path of a Unix socket.
    """

    def __init__(self, address: str, rank: int, secret: str) -> None:
        if address.startswith("/"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S)
            self._socket.settimeout(None)
        keep_alive(self._socket)
        self._sending, self._main = threading.Lock(), threading.get_ident()
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self.send(Hello(rank=rank, secret=secret, pid=os.getpid(), host=socket.gethostname()))
        threading.Thread(target=self._read_requests, name="controller", daemon=True).start()

    def send(self, reply: Message) -> None:
        """Send one frame."""
        with self._sending:
            self._socket.sendall(encode(reply))

    def receive(self) -> Request:
        """Wait for the next request."""
        return self._requests.get()

    def _read_requests(self) -> None:
        """Queue requests until the controller hangs up, then leave at once, whatever the main thread is doing."""
        code = 1
        try:
            while (header := self._read(HEADER.size)) is not None:
                (size,) = HEADER.unpack(header)
                if size > MAX_FRAME_BYTES:
                    raise errors.LearnerError(f"the controller announced {size} bytes; the link is out of step")
                if (body := self._read(size)) is None:
                    break
                request = _requests.decode(body)
                if isinstance(request, Locate):
                    self._locate(request)
                else:
                    self._requests.put(request)
            code = 0
        except ConnectionError:
            code = 0  # a controller that was killed leaves unread bytes, and its connection is reset
        except BaseException:
            # Whatever ends this thread ends the process: nobody would hear the main thread any more.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _locate(self, request: Locate) -> None:
        frame = sys._current_frames().get(self._main)
        last = traceback.extract_stack(frame)[-1] if frame else None
        faulthandler.dump_traceback(all_threads=True)
        at = f"{last.name} ({os.path.basename(last.filename)}:{last.lineno})" if last else "its end"
        # The main thread may be inside a long send; whoever asks has a deadline.
        self.send(Located(id=request.id, at=at))

    def _read(self, size: int) -> bytes | None:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            received = self._socket.recv_into(view[done:])
            if not received:
                return None
            done += received
        return bytes(data)
