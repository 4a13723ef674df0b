"""A server that answers each HTTP request with bytes of one's choice, be they HTTP or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream

Answer = Callable[[bytes], bytes | None]
"""Request body -> what to send before the connection is closed; None never answers."""

_LONGEST_HEAD = 1 << 16


@asynccontextmanager
async def serve_raw(answer: Answer) -> AsyncIterator[str]:
    """Serve on a free port of this machine; yield the address."""

    async def handle(stream: SocketStream) -> None:
        async with stream:
            try:
                reply = answer(await _read_request(stream))
                if reply is None:
                    await anyio.sleep_forever()
                else:
                    await stream.send(reply)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the client has left

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def _read_request(stream: SocketStream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _LONGEST_HEAD:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += await stream.receive()
    return body
