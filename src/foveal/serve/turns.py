"""Turns at looking at pictures: one at a time, and no client keeps all the others waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from foveal.serve.limits import Limits, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Turns"]


class Turns:
    """Plans that read a whole picture; who waits for a turn holds no thread."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._waiting: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, client: str, limits: Limits) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Args:
            client: address of the client.
            limits: limits; those of waiting jobs count for turns too.

        Yields:
            Nothing.

        Raises:
            RefusedError: too many plans of this client (429) or of all (503) wait.
        """
        if self._waiting[client] >= limits.per_client:
            raise RefusedError(
                429,
                f"{limits.per_client} plans of yours wait already (--max-per-client); wait for one of them",
                retry_after=5,
            )
        if self._waiting.total() >= limits.waiting:
            raise RefusedError(
                503, f"{limits.waiting} plans wait already (--max-waiting); try again later", retry_after=15
            )
        self._waiting[client] += 1
        try:
            async with self._one:
                yield
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]
