"""`POST /predict`: the path that has to be fast, and so is a plain ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from forge_sweep.preprocessing import Misfit, RowsRefused
from forge_sweep.serving import bodies
from forge_sweep.serving.answers import Answers
from forge_sweep.serving.batching import Busy
from forge_sweep.serving.bodies import Refused
from forge_sweep.serving.served import Answer
from forge_sweep.serving.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SMALL = 65_536
"""Bytes of a JSON body that is read in the loop's thread; a larger one would keep other requests waiting."""

MANY = 500
"""Rows of an answer that is made outside of the loop's thread."""

BODIES_IN_MEMORY = 8
"""So many of the largest bodies are read at a time."""


class Disconnected(Exception):
    """The caller is gone."""


class Predict:
    """The endpoint.

    Args:
        service: what answers.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            Refused: with the status to answer instead.
            Disconnected: nobody waits for the answer.
        """
        answers, held, complete = self.service.answers, 0, False
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                media, length = head(scope)
                held = self._hold(length)
                body = await read_body(receive, self.settings.max_body)
                complete = True
                content = await self._answer(answers, media, body, scope)
        except TimeoutError:
            raise self._late(complete) from None
        finally:
            self._bytes -= held
        await send_json(send, 200, content)

    async def _answer(self, answers: Answers, media: str, body: bytes, scope: Scope) -> bytes:
        transform, most = answers.served.transform, self.settings.max_rows
        try:
            if media == bodies.JSON and len(body) <= SMALL:
                rows = bodies.read(media, body, transform, most)
            else:
                rows = await asyncio.to_thread(bodies.read, media, body, transform, most)
        except RowsRefused as refused:
            raise misfits_refused(refused.misfits, refused.count) from None
        scope["forge.rows"], scope["forge.version"] = len(rows.raw), answers.served.located.version
        answer = await self._queue(answers, rows) if len(rows.raw) else no_rows(answers)
        if answer.misfits:
            raise misfits_refused(answer.misfits, len(answer.misfits))
        if answer.flagged:
            self.service.metrics.strange(
                answers.served.code(column, rows.raw[row][column]) for row, column in answer.flagged
            )
        if len(rows.raw) > MANY:
            return await asyncio.to_thread(written, answers, rows, answer)
        return written(answers, rows, answer)

    async def _queue(self, answers: Answers, rows: bodies.Rows) -> Answer:
        try:
            future = self.service.batcher.submit(answers.served, rows.raw)
        except Busy:
            more = {"max_waiting": self.settings.max_waiting}
            raise Refused(503, "busy", "too many rows wait; try again", more=more, headers=RETRY) from None
        return await future

    def _hold(self, length: int | None) -> int:
        """Make room for a body; one of unknown length counts as the largest."""
        most = self.settings.max_body
        if length is not None and length > most:
            raise too_large(most)
        wanted = most if length is None else length
        if self._bytes + wanted > BODIES_IN_MEMORY * most:
            raise Refused(503, "busy", "too many large bodies at a time; try again", headers=RETRY)
        self._bytes += wanted
        return wanted

    def _late(self, complete: bool) -> Refused:
        seconds = f"{self.settings.timeout_s:g} s"
        if complete:
            return Refused(504, "time-out", f"no answer within {seconds}")
        return Refused(
            408, "time-out", f"the body did not arrive within {seconds}", headers=[(b"connection", b"close")]
        )


def written(answers: Answers, rows: bodies.Rows, answer: Answer) -> bytes:
    """The answer as bytes."""
    found: bytes = orjson.dumps(answers(rows, answer))
    return found


RETRY = [(b"retry-after", b"1")]


def head(scope: Scope) -> tuple[str, int | None]:
    """Media type and length of a body.

    Raises:
        Refused: the media type is none that is read, or the body is packed.
    """
    media, length = b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = value
        elif name == b"content-length":
            length = int(value) if value.isdigit() else None
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(415, "media-type", "the body is compressed; send it as it is")
    return bodies.media_of(media), length


async def read_body(receive: Receive, most: int) -> bytes:
    """The whole body.

    Raises:
        Refused: it is too long.
        Disconnected: it ended early.
    """
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_large(most)
        if not message.get("more_body"):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)


def too_large(most: int) -> Refused:
    """The refusal of a long body; what is left of it is not read, so that the connection ends."""
    message, close = f"the body is longer than {most} bytes", [(b"connection", b"close")]
    return Refused(413, "too-large", message, more={"max_bytes": most}, headers=close)


def misfits_refused(misfits: tuple[Misfit, ...], count: int) -> Refused:
    """The refusal of rows that do not fit."""
    listed = [vars(misfit) for misfit in misfits[:20]]
    more = {"misfits": listed, "count": count}
    return Refused(422, "rows", "the rows do not fit the schema of the training rows; none was predicted", more=more)


def no_rows(answers: Answers) -> Answer:
    """The answer to no rows."""
    import numpy as np

    return Answer(np.empty((0, answers.served.bundle.task.units)))


async def send_json(send: Send, status: int, body: bytes, headers: Any = ()) -> None:
    """Send an answer."""
    length = (b"content-length", str(len(body)).encode())
    head = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
