"""A process that runs out of file descriptors, on demand."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Descriptors beyond those in use that a process may have that is to run out of them.
_FEW = 32


def eat(goes_on: Callable[[], bool], none_left: Callable[[], object]) -> None:
    """Take each descriptor of this process that is free or becomes so, for as long as it is to go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + _FEW
    taken: list[int] = []
    told = False
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        while goes_on():
            try:
                taken.append(os.dup(2))
            except OSError:
                if not told:
                    none_left()
                told = True
                time.sleep(0.001)  # whatever is closed, it has at once
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process has none left, in this block."""
    over, none_left = threading.Event(), threading.Event()
    eater = threading.Thread(target=eat, args=(lambda: not over.is_set(), none_left.set), name="eater")
    eater.start()
    try:
        assert none_left.wait(30)
        yield
    finally:
        over.set()
        eater.join()
