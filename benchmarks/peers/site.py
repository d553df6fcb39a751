"""The site that gunicorn serves: one view, which publishes as a candidate does, one thread as the other.

What it is told is in the environment: ``BENCH_MODULE``, ``BENCH_OPTIONS`` and ``BENCH_CASE``, as JSON.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
from http import HTTPStatus
from typing import Any

from flask import Flask

from benchmarks.peers.base import Call, Case, NotOffered, Peer
from benchmarks.peers.child import described


def _without_it(why: str) -> Flask:
    app = Flask("benchmark")

    @app.get("/")
    def view() -> tuple[str, int]:
        return why, HTTPStatus.NOT_IMPLEMENTED

    return app


def create() -> Flask:
    """The app of the candidate, where it has one, with the view."""
    logging.disable(logging.ERROR)
    module = importlib.import_module(f"benchmarks.peers.{os.environ['BENCH_MODULE']}")
    peer: Peer = module.make(json.loads(os.environ["BENCH_OPTIONS"]), lambda: None)
    try:
        # It is never left: a site ends when its process does.
        opened = peer.waiting(Case(json.loads(os.environ["BENCH_CASE"])))
        calls = iter(opened.__enter__())
    except NotOffered as exc:
        return _without_it(str(exc))
    own = threading.local()
    lock = threading.Lock()
    app: Flask = getattr(peer, "app", None) or Flask("benchmark")

    def call_of_this_thread() -> Call:
        call: Call | None = getattr(own, "call", None)
        if call is None:
            with lock:
                call = own.call = next(calls)
        return call

    @app.get("/")
    def view() -> str:
        call_of_this_thread()()
        return "ok"

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Any:
        return described(error), 500

    app.extensions["benchmark"] = opened, peer
    return app
