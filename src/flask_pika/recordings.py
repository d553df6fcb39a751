"""Where messages are kept instead of being sent, while a test records them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from .message import Message


class Recordings:
    """The lists that are open: each gets every message, so that recordings can be nested."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Read by any thread; replaced, under the lock, and never changed.
        self.lists: tuple[list[Message], ...] = ()

    @contextlib.contextmanager
    def record(self) -> Iterator[list[Message]]:
        """A list that gets every message until the block ends."""
        mine: list[Message] = []
        with self._lock:
            self.lists = (*self.lists, mine)
        try:
            yield mine
        finally:
            with self._lock:
                self.lists = tuple(one for one in self.lists if one is not mine)


#: The recordings of all apps in the process.
EVERY_APPS = Recordings()
