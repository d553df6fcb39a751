"""A process that has no file descriptors left, on demand."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Descriptors beyond those in use that a process may have that is to run out of them.
_FEW = 32
#: Standard input, output and error, which are always open.
_STANDARD = 3


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
    """This process has none left, in this block, nor gets any that is closed in it.

    Not with the help of eat(): who is as fast as that would get one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What is open stays so. Of the numbers below this, none is free, and none becomes so.
    resource.setrlimit(resource.RLIMIT_NOFILE, (_STANDARD, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
