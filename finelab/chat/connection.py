"""A client's connection, which holds nothing for long that was sent by half."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 20.0  # for the whole of a request, head and body


class Connection(H11Protocol):
    """uvicorn's, closed when a request is not whole in time; uvicorn itself would wait for ever."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give the first request its time."""
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        """Take what came, then see whether the request is whole."""
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(REQUEST_S, self.transport.close)

    def _stop(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
