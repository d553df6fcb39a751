"""What befalls the process that an app runs in, on demand: forks, no more descriptors, a wrong clock."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from flask import Flask, current_app
from flask.typing import ResponseReturnValue

from flask_pika import FlaskPikaError, Pika, PublishTimeout
from tests.descriptors import eat

#: In the lab's place: the seconds by which the wall clock is wrong; and there, while descriptors are eaten.
CLOCK, EATEN = "clock", "eaten"
#: What the eater says when it has them all.
NONE_LEFT = "no descriptor is left"
#: Of so many requests, one is published by a child.
_FORKED = 8
#: Seconds that a child may take.
_CHILD = 20
#: Seconds between an answer and the publishing, for the stand-in that answers first.
_LATER = 0.3


class ChildFailed(Exception):
    """A forked child did not publish what it was to publish."""


def falsify_clock(place: Path) -> None:
    """Have ``time.time()`` go wrong as a file says, in this process; before anybody takes it by its name."""
    right, right_ns = time.time, time.time_ns

    def off() -> float:
        try:
            return float((place / CLOCK).read_text())
        except FileNotFoundError:
            return 0.0

    time.time = lambda: right() + off()
    time.time_ns = lambda: right_ns() + int(off() * 1e9)


def set_clock(place: Path, seconds: float) -> None:
    """Have the wall clock be so far ahead of time; below 0: behind it."""
    new = place / f"{CLOCK}.new"
    new.write_text(str(seconds))
    new.replace(place / CLOCK)  # nobody reads half of it


#: By process: what its thread is to publish, and when.
_promised: dict[int, SimpleQueue[tuple[float, Callable[[], object]]]] = {}


def publish_later(app: Flask, publish: Callable[[], object]) -> None:
    """The stand-in that answers first: what it has promised is in its memory alone, for a while."""
    new: SimpleQueue[tuple[float, Callable[[], object]]] = SimpleQueue()
    promised = _promised.setdefault(os.getpid(), new)
    promised.put((time.monotonic() + _LATER, publish))
    if promised is new:
        threading.Thread(target=_keep_promises, args=(app, promised), daemon=True).start()


def _keep_promises(app: Flask, promised: SimpleQueue[tuple[float, Callable[[], object]]]) -> None:
    while True:
        due, publish = promised.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(FlaskPikaError), app.app_context():
            publish()


def publish_by_wall_clock(fpika: Pika, id_: str, queue: str) -> None:
    """The stand-in that keeps its deadline by the wall clock."""
    deadline = time.time() + current_app.config["PIKA_PUBLISHER_PARAMS"]["timeout"]
    sent = fpika.submit(id_, routing_key=queue, message_id=id_)
    while not sent.done():
        if time.time() > deadline:
            raise PublishTimeout("so says the wall clock")
        time.sleep(0.01)
    sent.result()


def add_views(app: Flask, fpika: Pika, queue: str, publish: Callable[[str], object], stand_in: str) -> None:
    """The views of what befalls a process.

    :param publish: what the app publishes with, given an id.
    """

    @app.post("/fork/<id_>")
    def fork(id_: str) -> ResponseReturnValue:
        """Now and then it is a child that publishes, while the parent holds a channel of its own."""
        if int(id_) % _FORKED:
            publish(id_)
            return {"id": id_}
        if stand_in == "takes itself for its parent":
            parent = os.getpid()
            os.getpid = lambda: parent
        with fpika.channel() as ch:
            most = 1 if stand_in else _CHILD
            _in_child(lambda: _publish_in_child(fpika, publish, queue, id_), most)
            ch.queue_declare(queue, passive=True)  # the parent's connection is as it was
        return {"id": id_}

    @app.errorhandler(ChildFailed)
    def child_failed(exc: ChildFailed) -> ResponseReturnValue:
        return {"error": type(exc).__name__, "text": str(exc)}, 500

    @app.post("/eat")
    def run_out() -> ResponseReturnValue:
        """Have this process run out of descriptors, until the file is away that says so."""
        flag = Path(os.environ["PLACE"]) / EATEN
        said = f"{NONE_LEFT}\n".encode()
        threading.Thread(target=eat, args=(flag.exists, lambda: os.write(2, said)), daemon=True).start()
        return {}


def _publish_in_child(fpika: Pika, publish: Callable[[str], object], queue: str, id_: str) -> None:
    publish(id_)
    with fpika.channel() as ch:
        ch.queue_declare(queue, passive=True)


def _in_child(work: Callable[[], object], most: int) -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(most)  # one that hangs is one that failed
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise ChildFailed(f"the child's exit code is {code}")
