"""What a session asks for that has to wait for the disk: done one after another, as it came.

In order, since two patches of a twin must be applied as they were sent, and since clients pipeline
a SUBSCRIBE and the request whose answer it is for.
"""

import asyncio
from collections.abc import Awaitable, Callable

LIMIT = 16
"""Requests that may be asked for until none waits any more; then the connection is not read."""

Request = Callable[[], Awaitable[None]]


class Requests:
    """The waiting requests of one session."""

    __slots__ = ("_asked", "_drained", "_failed", "_queue", "_task")

    def __init__(self, drained: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """`drained` is called when none wait any more; `failed` gets what a request raised,
        after which no further one is begun."""
        self._drained = drained
        self._failed = failed
        self._queue: list[Request] = []
        self._asked = 0
        self._task: asyncio.Task[None] | None = None

    def add(self, request: Request, weight: int) -> bool:
        """Do this after those before it; False if no more should come until `drained`.

        `weight` is how many small requests it counts for."""
        self._queue.append(request)
        self._asked += weight
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return self._asked < LIMIT

    def drop(self) -> None:
        """Begin no further one; one that has begun ends by itself."""
        self._queue.clear()

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._queue[0]()
                if self._queue:  # else they were dropped meanwhile
                    self._queue.pop(0)
        except Exception as error:
            self._queue.clear()
            self._failed(error)
        finally:
            self._task = None
            self._asked = 0
        self._drained()
