"""Who holds a slot of the pool, and who waits for one."""

from __future__ import annotations

import threading
import weakref
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")


class Borrower(NamedTuple):
    """Who holds a slot, for the error that others get."""

    where: str  # an endpoint, or what else the checkout was made from
    thread: int  # its identifier; the name is looked up when somebody wants to read it
    since: float
    holder: weakref.ref[object] | None = None  # who will return it; when it is gone, nobody will
    is_pool: bool = False  # and no borrower's mistake, when it is gone

    @property
    def is_gone(self) -> bool:
        """Whether nobody can return the slot any more."""
        return self.holder is not None and self.holder() is None

    def describe(self, now: float) -> str:
        """Who this is, in words."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        name = names.get(self.thread, self.thread)  # one that has ended, or a greenlet, has no name
        return (
            f"{self.where or 'code outside of an app context'} in thread {name} for {now - self.since:.1f} s"
        )


class Waiter(Generic[S]):
    """A place in the queue. ``slot`` is written under the pool's lock, before ``served`` is released."""

    __slots__ = ("borrower", "served", "slot")

    def __init__(self, borrower: Borrower) -> None:
        self.borrower = borrower
        self.slot: S | None = None
        # A held lock is the lightest thing to wait for with a timeout.
        self.served = threading.Lock()
        self.served.acquire()
