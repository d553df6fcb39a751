"""The keeper: a thread that keeps a pool's idle connections alive."""

from __future__ import annotations

import logging
import queue
import threading

from .pool import ChannelPool
from .slot import Slot

logger = logging.getLogger("flask_pika.pool")


class Keeper:
    """Serves the heartbeats of a pool's idle connections until it is stopped.

    One daemon thread per pool, started when the first connection is opened.

    :param interval: seconds between two rounds; a quarter of the heartbeat leaves room for a late one.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        # Reentrant, unlike an Event: stop() may be called by the garbage collector, in any thread.
        self._stopped: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._starting = threading.RLock()  # a finalizer may come here from in here
        self._thread: threading.Thread | None = None

    def start(self, pool: ChannelPool[Slot]) -> None:
        """Start the thread, if it does not run yet."""
        if self._thread is not None:
            return
        with self._starting:
            self._start(pool)

    def _start(self, pool: ChannelPool[Slot]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(pool,), name="flask-pika-keeper", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as exc:  # no more threads: the next connection tries again
                self._thread = None
                logger.warning("no keeper for %r, idle connections may die: %s", pool, exc)

    def stop(self) -> None:
        """End the thread after its round, and close the pool. Does not wait."""
        self._stopped.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, if it was started."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, pool: ChannelPool[Slot]) -> None:
        while True:
            try:
                self._stopped.get(timeout=self._interval)
            except queue.Empty:
                try:
                    pool.tend()
                except Exception:
                    # One round failed; the connections need the next one all the same.
                    logger.exception("the keeper of %r failed in one round", pool)
            else:
                pool.close()
                return
