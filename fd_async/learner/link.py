"""The wire between controller and learner ranks: msgpack messages over a Unix socket, length first.

A frame is 8 bytes (big-endian length) and a msgpack body. The controller sends `Request`s, a rank answers each
with one `Reply` that bears the same `id`. The rank's side blocks; the controller's side is in `client`.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from fd_async import errors
from fd_async.config.schema import RunConfig
from fd_async.types import StagedWeights, StepReport, TrainingSample

HEADER = struct.Struct(">Q")
MAX_FRAME_BYTES = 4 << 30


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
    """Write the learner's part of a checkpoint into `folder`."""

    folder: str


class Export(Message, frozen=True, kw_only=True):
    """Write a Hugging Face folder."""

    folder: str


class Hello(Message, frozen=True, kw_only=True):
    """A rank is connected; `id` is unused."""

    rank: int


class Done(Message, frozen=True, kw_only=True):
    """The request is carried out."""


class Stepped(Message, frozen=True, kw_only=True):
    """Result of `Step`."""

    report: StepReport


class Staged(Message, frozen=True, kw_only=True):
    """Result of `Stage`; only rank 0 has weights."""

    weights: StagedWeights | None


class Failed(Message, frozen=True, kw_only=True):
    """The request raised; `kind` is a class of `fd_async.errors`, or another exception's name."""

    kind: str
    text: str


Request = Start | Step | Stage | Send | Save | Export
Reply = Hello | Done | Stepped | Staged | Failed

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


class RankSocket:
    """The rank's blocking end."""

    def __init__(self, path: str, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self.send(Hello(rank=rank))

    def send(self, reply: Message) -> None:
        """Send one frame."""
        self._socket.sendall(encode(reply))

    def receive(self) -> Request | None:
        """Wait for the next request; None when the controller is gone."""
        header = self._read(HEADER.size)
        body = self._read(HEADER.unpack(header)[0]) if header is not None else None
        return None if body is None else _requests.decode(body)

    def _read(self, size: int) -> bytes | None:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            received = self._socket.recv_into(view[done:])
            if not received:
                return None
            done += received
        return bytes(data)
