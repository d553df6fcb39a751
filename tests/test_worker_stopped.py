"""A worker that is told to end while it is stopped, by job control or a supervisor, ends when it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_pika.broker import Broker
from tests.conftest import wait_for
from tests.other_processes import stop
from tests.test_worker_cli import APP, Command


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


def test_signal_that_comes_while_it_is_stopped_ends_it(place: Path, broker: Broker) -> None:
    for _ in range(3):  # which thread the system gives it to is chance
        command = Command(place, broker.url)
        try:
            wait_for(lambda: broker.connections, "a worker that is connected")
            pid = command.process.pid
            stop(pid)
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
            assert command.exit_code() == 0
        finally:
            command.close()
        wait_for(lambda: not broker.connections, "the end of its connection")
