"""One container's log on its way: read, cut, send, note the position; and wait, for lines or for the receiver.

Order that must hold: watch the directory, then read; a position is noted once its messages were taken. While
the receiver is away, one batch is held and nothing is read, so that memory is bounded; what is rotated away
meanwhile is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cove.logs.destinations import Shipment
from cove.logs.inotify import Watch, watched
from cove.logs.shipping.cut import Cutter, Message
from cove.logs.shipping.position import Mark, Position, load_position, save_position
from cove.logs.shipping.protocol import Told
from cove.logs.shipping.senders import Sender, TooLong
from cove.logs.shipping.trail import Trail

BATCH_BYTES = 64 << 10  # of messages and what goes along with each
SAVE_S = 0.5
MOST_PAUSE_S = 30.0
_LOOK_S = 0.05  # between looks at the files of a log whose receiver is away


class Carrier:
    """Carries until the container has ended and everything is sent, or `run` is cancelled."""

    def __init__(
        self,
        directory: int,
        shipment: Shipment,
        make_sender: Callable[[Shipment], Sender],
        tell: Callable[[Told], None],
    ) -> None:
        """`directory` is the log's, open: it may be moved while the carrier has it. The carrier closes it."""
        self._descriptor = directory
        self._directory = Path(f"/proc/self/fd/{directory}")
        self._shipping = self._directory / "ship"
        self._shipment = shipment
        self._make_sender = make_sender
        self._tell = tell
        self._sender: Sender | None = None
        self._watch: Watch | None = None
        self._ended = False
        self._position = load_position(self._shipping) or Position(marks={})
        self._told = self._position
        self._saved = self._position
        self._saved_s = 0.0
        self._renew = False  # the sender is another one's
        self._away = False
        self._lost = 0  # bytes that no datagram could hold
        self._lost_before = self._position.lost

    @property
    def container_id(self) -> str:
        return self._shipment.source.container_id

    def end(self) -> None:
        """The container has ended: what is left is the end."""
        self._ended = True
        if self._watch is not None:
            self._watch.changed.set()

    def begin(self, shipment: Shipment) -> None:
        """The container was started again, perhaps under another name."""
        self._ended = False
        if shipment != self._shipment:
            self._shipment = shipment
            self._renew = True

    def close(self) -> None:
        """Forget the log without a word: it is to be dropped. `run` must have ended."""
        self._close_sender()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def run(self) -> None:
        """Raises HostError: the log can't be read."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            undo.callback(self._save)
            self._watch = undo.enter_context(watched(self._directory))
            trail = Trail(self._directory, self._position if self._position.marks else None)
            undo.callback(trail.close)
            await self._carry(trail, Cutter(), self._watch)

    async def _carry(self, trail: Trail, cutter: Cutter, watch: Watch) -> None:
        while True:
            watch.changed.clear()
            finished, rotated, behind = self._ended or watch.gone, trail.rotated(), trail.behind
            while chunks := trail.read(final=rotated or finished):
                await self._carry_messages(trail, cutter, (m for chunk in chunks for m in cutter.cut(chunk)))
                await asyncio.sleep(0)
            if rotated:
                trail.advance()
            elif finished:
                await self._carry_messages(trail, cutter, cutter.flush())
                return
            elif not behind:
                await self._wait(watch)

    async def _carry_messages(self, trail: Trail, cutter: Cutter, messages: Iterator[Message]) -> None:
        source = self._shipment.source
        along = 256 + sum(len(key) + len(value) for key, value in source.attributes.items())
        batch: list[Message] = []
        size = 0
        for message in messages:
            batch.append(message)
            size += len(message.data) + along
            if size >= BATCH_BYTES:
                await self._deliver(trail, batch)
                self._note(trail, cutter.marks(), len(batch))
                batch, size = [], 0
        if batch:
            await self._deliver(trail, batch)
        self._note(trail, cutter.marks(), len(batch))

    async def _deliver(self, trail: Trail, batch: list[Message]) -> None:
        """Until the receiver has taken all of it."""
        pause_s = 0.0
        while batch:
            try:
                taken = await self._send(trail, batch)
            except TooLong:
                self._lost += len(batch[0].data)
                taken = 1
            except (OSError, TimeoutError) as error:
                if not self._away:
                    self._away = True
                    self._tell(Told(container_id=self.container_id, trouble=_sentence(error)))
                first_s = getattr(self._shipment.destination, "retry_s", 1.0)
                pause_s = min(max(pause_s * 1.5, first_s, 0.05), MOST_PAUSE_S)
                await self._pause(trail, pause_s)
                continue
            batch = batch[taken:]
            pause_s = 0.0
            if self._away:
                self._away = False
                self._tell(Told(container_id=self.container_id, recovered=True))

    async def _send(self, trail: Trail, batch: list[Message]) -> int:
        if self._renew:
            self._renew = False
            self._close_sender()
        if self._sender is None:
            self._sender = self._make_sender(self._shipment)
        sending = asyncio.ensure_future(self._sender.send(batch))
        try:
            while not (await asyncio.wait({sending}, timeout=_LOOK_S))[0]:
                self._look(trail)
            return sending.result()
        finally:
            if sending.cancel():
                await asyncio.gather(sending, return_exceptions=True)

    async def _pause(self, trail: Trail, seconds: float) -> None:
        """Until it's time to try again; what is rotated away meanwhile is counted at once."""
        end = time.monotonic() + seconds
        assert self._watch is not None
        while (left := end - time.monotonic()) > 0:
            self._watch.changed.clear()
            self._look(trail)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._watch.changed.wait()
                await asyncio.sleep(min(left, _LOOK_S))

    async def _wait(self, watch: Watch) -> None:
        if self._position != self._saved:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_S):
                    await watch.changed.wait()
                    return
            self._save()
        await watch.changed.wait()

    def _look(self, trail: Trail) -> None:
        """Count what is rotated away while nothing can be sent, and let go of it."""
        trail.check_lost()
        self._note(trail, self._position.marks, 0)

    def _note(self, trail: Trail, marks: dict[int, Mark], sent: int) -> None:
        lost = self._lost_before + self._lost + trail.lost_bytes
        self._position = Position(
            marks=marks or self._position.marks, sent=self._position.sent + sent, lost=lost
        )
        if self._position != self._saved and time.monotonic() - self._saved_s >= SAVE_S:
            self._save()

    def _save(self) -> None:
        position, told = self._position, self._told
        if position != self._saved:
            save_position(self._shipping, position)
            self._saved = position
        self._saved_s = time.monotonic()
        if position.sent != told.sent or position.lost != told.lost:
            self._told = position
            self._tell(
                Told(
                    container_id=self.container_id,
                    sent=position.sent - told.sent,
                    lost_bytes=position.lost - told.lost,
                )
            )

    def _close_sender(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def _sentence(error: BaseException) -> str:
    """What went wrong, without a trace of what was to be sent."""
    if isinstance(error, TimeoutError) and not error.args:
        return "it doesn't answer"
    return str(error)[:200] or type(error).__name__
