"""A thread that owns a database connection and serves one event loop.

Rules. Work runs in the order in which it was handed over, one piece at a time. Its outcome comes
back as a call on the loop, never in the worker's thread, so that nobody needs a lock. Whoever
hands over work keeps at most a bounded amount outstanding; the queue itself has no bound.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """One thread; `run` and `call` are for the event loop that made it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        # A daemon: a process that dies of an error must not hang on a thread waiting for work.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """Run `work` in the thread, then `done(result)` or `fail(error)` on the loop."""

        def job() -> None:
            try:
                result = work()
            except BaseException as error:
                self._post(fail, error)
            else:
                self._post(done, result)

        self._queue.put(job)

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread and return its result, or raise what it raised."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T) -> None:
            if not future.done():
                future.set_result(result)

        def fail(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        self.run(work, done, fail)
        return await future

    async def stop(self) -> None:
        """Let the thread finish what it was given, and end it."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.shield(self._stopped)
            self._thread.join()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            # Or the last job would keep its arguments alive while the thread waits.
            del job
        self._post(self._finish, None)

    def _finish(self, _: None) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _post(self, callback: Callable[[T], None], value: T) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            # The loop was closed without stopping us first; nobody is left to be told.
            pass
