"""``flask pika dead ...`` as an operator meets it: nothing is lost, whenever it ends, and the order stays."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from flask_pika import dead_tasks
from flask_pika.dead_reader import DeadReader
from flask_pika.retry import dead_queue
from flask_pika.state import State
from tests.conftest import Node, make_app, wait_for
from tools.rabbitmq_node import RabbitMQNode, free_port

APP = """
from flask import Flask
from flask_pika import Pika

app = Flask("shop")
app.config.from_prefixed_env()
fpika = Pika(app)
"""
TWO = f"""
import os
{APP}
app.config["OTHER_PARAMS"] = os.environ["FLASK_PIKA_PARAMS"]
Pika(app, config_prefix="OTHER")
"""
#: Slow enough that a kill comes in the middle, however long the test takes to see that it has begun. What is
#: replayed is mostly in both queues then.
SLOW = f"""
import time
{APP}
from flask_pika.dead_reader import DeadReader


def slowly(name):
    method = getattr(DeadReader, name)

    def slow(*args):
        time.sleep(0.005)
        return method(*args)

    setattr(DeadReader, name, slow)


slowly("_publish")
slowly("remove_tag")
"""
#: In the middle of an export, it waits for a signal, and says so by a file: ``begun``.
PAUSED = f"""
import itertools, os, pathlib, signal
{APP}
from flask_pika import dead_tasks

numbers, encode_line = itertools.count(), dead_tasks.encode_line
came, comes = os.pipe()
os.set_blocking(comes, False)
signal.set_wakeup_fd(comes)


def encode_line_or_wait(letter):
    if next(numbers) == 500:
        pathlib.Path("begun").touch()
        os.read(came, 1)
    return encode_line(letter)


dead_tasks.encode_line = encode_line_or_wait
"""
#: What a process had in memory at the most; rusage would have its parent's.
PEAK = """
import atexit, pathlib
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path(__file__).with_name("peak").write_text(status.read_text()))
"""


class Shop:
    """An app, a queue with dead letters, and a look into both that is no part of what is tested."""

    def __init__(self, place: Path, node: Node, channel: BlockingChannel) -> None:
        self.place = place
        self.node = node
        self.channel = channel
        self.env = {**os.environ, "FLASK_PIKA_PARAMS": node.url}
        self.queue = f"orders-{uuid.uuid4().hex[:8]}"
        self.dead = dead_queue(self.queue)
        channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare(self.dead.name, durable=True, arguments=dict(self.dead.arguments))

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "flask", "--app", "app", "pika", "dead", *args]

    def run(self, command: str, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(command, self.queue, *args),
            cwd=self.place,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            **more,
        )

    def says(self, command: str, *args: str, code: int = 0, **more: Any) -> str:
        done = self.run(command, *args, **more)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, command: str, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(command, self.queue, *args),
            cwd=self.place,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def fill(self, count: int, body: bytes = b"body") -> list[str]:
        """Dead letters as a worker leaves them; every other one is of tenant b."""
        ids = [f"id-{number:05}" for number in range(count)]
        for number, one in enumerate(ids):
            headers = {
                "tenant": "ab"[number % 2],
                "number": number,
                "x-failure-reason": "attempts",
                "x-failure-attempts": 5,
                "x-failure-type": "KeyError",
                "x-failure-message": "'item'",
                "x-failure-exchange": "shop",
                "x-failure-routing-key": "order.created",
                "x-failure-traceback": "Traceback ...\nKeyError: 'item'\n",
            }
            properties = BasicProperties(message_id=one, headers=headers, delivery_mode=2)
            self.channel.basic_publish("", self.dead.name, body, properties)
        self.waits_for(count)
        return ids

    def count(self, queue: str) -> int:
        """How many are ready. RabbitMQ says 0, too, where a quorum queue does not answer it within 0.25 s."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def waits_for(self, dead: int, alive: int = 0) -> None:
        wait_for(
            lambda: (self.count(self.dead.name), self.count(self.queue)) == (dead, alive),
            lambda: f"{self.count(self.dead.name)} dead, {self.count(self.queue)} alive",
        )

    def take(self, queue: str) -> list[Any]:
        """All that is in it, in its order: it is empty then."""
        found: list[Any] = []
        channel: Any = self.channel
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            (got[1].headers or {}).pop("x-delivery-count", None)
            found.append(got)
        return found

    def ids(self, queue: str) -> list[str]:
        return [properties.message_id for _, properties, _ in self.take(queue)]


@pytest.fixture
def shop(tmp_path: Path, everyday: Node) -> Iterator[Shop]:
    (tmp_path / "app.py").write_text(APP)
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    made = Shop(tmp_path, everyday, connection.channel())
    yield made
    made.channel.queue_delete(made.queue)
    made.channel.queue_delete(made.dead.name)
    connection.close()


# A look


def test_list_shows_a_table_and_every_look_leaves_the_order_as_it_was(shop: Shop) -> None:
    ids = shop.fill(150)
    said = shop.says("list", "--limit", "120")
    assert f"120 of 150 dead letters of '{shop.queue}'; a higher --limit shows more" in said
    first = said.splitlines()[1].split()
    assert first[:2] == ["1", "id-00000"]
    assert "  5         attempts  KeyError: 'item'  shop / order.created\n" in said
    assert "id-00119" in said
    assert "id-00120" not in said
    # A part of those that were looked at before, and then a smaller one, and so on.
    for options in (["--limit", "7"], ["--limit", "3", "--match", "tenant=b"], ["--limit", "130"]):
        assert " id-00001 " in shop.says("list", *options)
    assert "message_id     id-00004" in shop.says("show", "id-00004")
    assert shop.ids(shop.dead.name) == ids


def test_list_has_a_line_of_json_for_each_for_machines(shop: Shop) -> None:
    shop.fill(6)
    done = shop.run("list", "--json", "--match", "tenant=b", "--match", "x-failure-type=KeyError")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message_id"] for line in lines] == ["id-00001", "id-00003", "id-00005"]
    assert lines[0] == {
        "place": 2,
        "message_id": "id-00001",
        "time": None,
        "attempts": 5,
        "reason": "attempts",
        "type": "KeyError",
        "message": "'item'",
        "exchange": "shop",
        "routing_key": "order.created",
        "body_bytes": 4,
    }
    assert "3 of 6" in done.stderr


def test_list_that_nobody_reads_to_its_end_changes_nothing(shop: Shop) -> None:
    ids = shop.fill(3000)
    shop.says("list", "--limit", "2000")
    command = (
        f"{subprocess.list2cmdline(shop.argv('list', shop.queue, '--json', '--limit', '3000'))} | head -n 1"
    )
    subprocess.run(command, shell=True, cwd=shop.place, env=shop.env, capture_output=True, check=True)
    shop.waits_for(3000)
    assert shop.ids(shop.dead.name) == ids


def test_show_shows_all_of_one(shop: Shop) -> None:
    shop.fill(3, b'{"item": null}')
    for told in (["id-00001"], ["--place", "2"]):
        said = shop.says("show", *told)
        assert "2 of 3" in said
        assert "  KeyError: 'item'\n" in said
        assert '    "item": null\n' in said
        assert "x-failure-exchange" in said
    assert "there is no 'id-9' among the 3" in shop.says("show", "id-9", code=1)
    assert "there is no place 4 among the 3" in shop.says("show", "--place", "4", code=1)
    assert "say either" in shop.says("show", code=2)
    shop.waits_for(3)


# Replay


def test_replay_gives_them_back_in_their_order_as_if_they_had_never_failed(shop: Shop) -> None:
    ids = shop.fill(20)
    assert f"20 of 20 dead letters would be replayed to '{shop.queue}'" in shop.says("replay", "--dry-run")
    shop.waits_for(20)
    assert "20 replayed, 0 failed, 0 left" in shop.says("replay")
    found = shop.take(shop.queue)
    assert [properties.message_id for _, properties, _ in found] == ids
    assert found[3][1].headers == {
        "tenant": "b",
        "number": 3,
        "x-failure-exchange": "shop",
        "x-failure-routing-key": "order.created",
    }
    assert shop.ids(shop.dead.name) == []


def test_those_that_do_not_match_stay_in_their_order(shop: Shop) -> None:
    ids = shop.fill(20)
    dry = shop.says("replay", "--dry-run", "--match", "tenant=b", "--limit", "3")
    assert "3 of 20 dead letters would be" in dry
    assert "3 replayed, 0 failed, 17 left" in shop.says("replay", "--match", "tenant=b", "--limit", "3")
    assert "0 replayed" in shop.says("replay", "--match", "tenant=a", "--match", "number=7")
    assert "1 replayed" in shop.says("replay", "--match", "tenant=b", "--match", "number=7")
    assert "1 replayed" in shop.says("replay", "--match", "message_id=id-00010")
    assert "2 replayed" in shop.says("replay", "--limit", "2")
    assert shop.ids(shop.queue) == [ids[number] for number in (1, 3, 5, 7, 10, 0, 2)]
    assert shop.ids(shop.dead.name) == [ids[n] for n in range(20) if n not in (0, 1, 2, 3, 5, 7, 10)]
    assert "is not of the form" in shop.says("replay", "--match", "tenant", code=2)


def test_no_other_consumer_of_the_exchange_sees_what_is_replayed(shop: Shop) -> None:
    exchange, other = f"{shop.queue}-x", f"{shop.queue}-other"
    shop.channel.exchange_declare(exchange, "fanout")
    shop.channel.queue_declare(other, exclusive=True)
    for queue in (shop.queue, shop.dead.name, other):
        shop.channel.queue_bind(queue, exchange)
    headers = {"x-failure-exchange": exchange, "x-failure-routing-key": "", "CC": [other]}
    shop.channel.basic_publish("", shop.dead.name, b"", BasicProperties(headers=headers))
    shop.take(other)
    shop.waits_for(1)
    shop.says("replay")
    shop.waits_for(0, alive=1)
    assert shop.count(other) == 0
    shop.channel.exchange_delete(exchange)


def test_one_that_the_broker_dead_lettered_is_listed_and_replayed_too(shop: Shop) -> None:
    exchange, queue = f"{shop.queue}-x", f"{shop.queue}-limited"
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": shop.dead.name}
    shop.channel.exchange_declare(exchange, "direct")
    shop.channel.queue_declare(queue, durable=True, arguments=arguments)
    shop.channel.queue_bind(queue, exchange, "created")
    shop.channel.basic_publish(exchange, "created", b"poison", BasicProperties(message_id="poison"))
    for _ in range(2):
        wait_for(lambda: shop.count(queue), "the message")
        method: Any = shop.channel.basic_get(queue)[0]
        shop.channel.basic_reject(method.delivery_tag, requeue=True)
    shop.waits_for(1)
    listed = json.loads(shop.run("list", "--json").stdout)
    assert (listed["message_id"], listed["reason"]) == ("poison", "delivery_limit")
    assert (listed["exchange"], listed["routing_key"]) == (exchange, "created")
    assert listed["time"].startswith("20")
    assert "1 replayed" in shop.says("replay", "--match", "x-first-death-reason=delivery_limit")
    ((_, properties, body),) = shop.take(shop.queue)
    assert body == b"poison"
    assert properties.headers == {"x-failure-exchange": exchange, "x-failure-routing-key": "created"}
    shop.channel.queue_delete(queue)
    shop.channel.exchange_delete(exchange)


def test_replay_ends_though_all_of_them_fail_again(shop: Shop, everyday: Node) -> None:
    ids = shop.fill(50)
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    ended = threading.Event()

    def fail() -> None:
        channel: Any = connection.channel()
        for method, properties, body in channel.consume(shop.queue, inactivity_timeout=0.05):
            if method is not None:
                channel.basic_publish("", shop.dead.name, body, properties)
                channel.basic_ack(method.delivery_tag)
            elif ended.is_set():
                break
        connection.close()

    worker = threading.Thread(target=fail)
    worker.start()
    try:
        assert "50 replayed, 0 failed, 0 left" in shop.says("replay")
        shop.waits_for(50)
        assert "25 replayed, 0 failed, 25 left" in shop.says("replay", "--match", "tenant=b")
        shop.waits_for(50)
    finally:
        ended.set()
        worker.join()
    assert shop.ids(shop.dead.name) == ids[0::2] + ids[1::2]


def test_replay_is_as_fast_as_it_is_told_and_ctrl_c_ends_it_with_an_account(shop: Shop) -> None:
    ids = shop.fill(60)
    process = shop.start("replay", "--rate", "5")  # for 12 seconds
    wait_for(lambda: shop.count(shop.queue) >= 5, "some that are replayed")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    alive = shop.ids(shop.queue)
    assert 5 <= len(alive) < 60
    assert f"{len(alive)} replayed, 0 failed, {60 - len(alive)} left; interrupted" in said
    shop.waits_for(60 - len(alive))
    began = time.monotonic()
    assert "21 replayed" in shop.says("replay", "--rate", "10", "--limit", "21")
    assert time.monotonic() - began > 2, "it went faster than it was told"
    assert alive + shop.ids(shop.queue) + shop.ids(shop.dead.name) == ids


def test_replay_ends_where_the_queue_takes_no_more(shop: Shop) -> None:
    ids = shop.fill(10)
    shop.channel.queue_delete(shop.queue)
    limit: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": 3, "x-overflow": "reject-publish"}
    shop.channel.queue_declare(shop.queue, durable=True, arguments=limit)
    said = shop.says("replay", code=1)
    assert "takes no more" in said
    assert "3 replayed, 1 failed, 7 left" in said
    assert shop.ids(shop.queue) + shop.ids(shop.dead.name) == ids
    shop.fill(1)
    shop.channel.queue_delete(shop.queue)
    assert f"there is no queue '{shop.queue}'" in shop.says("replay", code=1)
    wait_for(lambda: shop.count(shop.dead.name) == 1, "the one that stayed")


# Purge


def test_purge_asks_and_deletes_what_it_was_told(shop: Shop) -> None:
    ids = shop.fill(20)
    assert "10 of 20 dead letters" in shop.says("purge", "--match", "tenant=a", "--dry-run")
    asked = shop.says("purge", input="n\n", code=1)
    assert f"Delete 20 of 20 dead letters of '{shop.queue}' for good?" in asked
    shop.says("purge", input="", code=1)
    shop.waits_for(20)
    asked = shop.says("purge", "--match", "tenant=a", "--match", "x-failure-attempts=5", input="y\n")
    assert "Delete 10 of 20" in asked
    assert "10 deleted, 10 left" in asked
    assert "1 deleted, 9 left" in shop.says("purge", "--match", "number=7", "--yes")
    assert shop.ids(shop.dead.name) == [one for one in ids[1::2] if one != "id-00007"]
    shop.fill(5)
    assert "5 deleted, 0 left" in shop.says("purge", "--yes")
    shop.waits_for(0)


def test_what_comes_while_purge_asks_is_not_deleted(shop: Shop) -> None:
    shop.fill(3)
    process = subprocess.Popen(
        shop.argv("purge", shop.queue),
        cwd=shop.place,
        env=shop.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 10)  # the question
    shop.channel.basic_publish("", shop.dead.name, b"", BasicProperties(message_id="late"))
    shop.waits_for(4)
    process.communicate(b"y\n", timeout=30)
    assert process.returncode == 0
    assert shop.ids(shop.dead.name) == ["late"]


# Files


def test_a_file_has_all_of_them_and_import_puts_them_back(shop: Shop) -> None:
    shop.fill(30)
    raw = BasicProperties(message_id="raw", headers={"x": b"\xff", "t": {"$bytes": "x"}}, user_id="guest")
    shop.channel.basic_publish("", shop.dead.name, b"\x00\xff", raw)
    shop.waits_for(31)
    file = shop.place / "dead.jsonl"
    assert "31 of 31 dead letters would be written" in shop.says("export", "dead.jsonl", "--dry-run")
    assert not file.exists()
    assert "31 of 31 dead letters written to dead.jsonl" in shop.says("export", "dead.jsonl")
    assert sorted(path.name for path in shop.place.glob("*.jsonl*")) == ["dead.jsonl"]
    assert not list(shop.place.glob(".dead*"))
    assert "exists; --overwrite replaces it" in shop.says("export", "dead.jsonl", code=1)
    assert shop.run("export", "-").stdout == file.read_text()
    assert "2 of 31" in shop.says(
        "export", "dead.jsonl", "--overwrite", "--limit", "2", "--match", "tenant=b"
    )
    assert [json.loads(line)["headers"]["number"] for line in file.read_text().splitlines()] == [1, 3]
    assert "31 of 31 dead letters written to all.jsonl, and removed" in shop.says(
        "export", "all.jsonl", "--remove"
    )
    shop.waits_for(0)
    assert "31 good, 0 failed" in shop.says("import", "all.jsonl", "--dry-run")
    shop.waits_for(0)
    assert "31 put back, 0 failed" in shop.says("import", "all.jsonl")
    shop.says("export", "again.jsonl")
    assert (shop.place / "again.jsonl").read_bytes() == (shop.place / "all.jsonl").read_bytes()
    ((_, properties, body),) = shop.take(shop.dead.name)[30:]
    assert (properties.headers, properties.user_id) == (raw.headers, "guest")
    assert body == b"\x00\xff"


def test_export_removes_what_it_wrote_and_nothing_else(shop: Shop) -> None:
    ids = shop.fill(10)
    shop.says("export", "b.jsonl", "--remove", "--match", "tenant=b", "--limit", "3")
    assert shop.ids(shop.dead.name) == [one for one in ids if one not in ("id-00001", "id-00003", "id-00005")]
    assert "--remove is for a FILE" in shop.says("export", "-", "--remove", code=2)
    assert "cannot write beside" in shop.says("export", "no/where", code=1)
    assert "is no file" in shop.says("export", "/dev/null", "--overwrite", code=1)


def test_an_export_that_was_stopped_left_no_file_and_all_dead_letters(shop: Shop) -> None:
    ids = shop.fill(4000, b"x" * 5000)
    (shop.place / "app.py").write_text(PAUSED)
    for number in (signal.SIGINT, signal.SIGKILL):
        process = shop.start("export", "dead.jsonl")
        wait_for((shop.place / "begun").exists, "an export that has begun")
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == (1 if number == signal.SIGINT else -signal.SIGKILL), said
        (shop.place / "begun").unlink()
        assert not (shop.place / "dead.jsonl").exists()
        shop.waits_for(4000)
        if number == signal.SIGINT:
            assert "dead.jsonl was not written; interrupted" in said
            assert not list(shop.place.glob(".dead*"))
    assert shop.ids(shop.dead.name) == ids


def test_wrong_lines_are_named_and_the_others_go_on(shop: Shop) -> None:
    good = [json.dumps({"properties": {"message_id": f"id-{n}"}, "body": "x"}) for n in range(3)]
    foreign = json.dumps({"properties": {"message_id": "id-3", "user_id": "somebody"}, "body": "x"})
    lines = [good[0], "garbage", "", good[1], '{"body": 1, "properties": {}}', foreign, good[2], good[2][:-5]]
    (shop.place / "dead.jsonl").write_text("\n".join(lines))
    for options, word in ((["--dry-run"], "good"), ([], "put back")):
        said = shop.says("import", "dead.jsonl", *options, code=1)
        assert "line 2: no JSON" in said
        assert "line 5: body is a number" in said
        assert "line 8: no JSON" in said
        assert f"4 {word}, 3 failed" in said
    assert shop.ids(shop.dead.name) == ["id-0", "id-1", "id-3", "id-2"]


# What ends in the middle


def killed(shop: Shop, begun: Any, command: str, *args: str) -> int:
    """Start a command, and kill it when it has begun; the process's number."""
    (shop.place / "app.py").write_text(SLOW)
    process = shop.start(command, *args)
    wait_for(begun, lambda: f"{command} that has begun: {process.poll()}")
    process.kill()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, f"it was faster than the test: {said}"
    (shop.place / "app.py").write_text(APP)
    return process.pid


def balances(ids: Sequence[str], found: Counter[str], twice: int) -> None:
    assert set(found) == set(ids), "one was lost"
    assert sum(found.values()) - len(ids) <= twice, "more than the one in hand came twice"


def test_replay_killed_in_the_middle_loses_nothing_and_has_one_twice_at_the_most(shop: Shop) -> None:
    ids = shop.fill(1500)
    for part in (50, 200, 350):
        killed(shop, lambda part=part: shop.count(shop.queue) >= part, "replay")
    wait_for(lambda: shop.count(shop.queue) + shop.count(shop.dead.name) >= 1500, "what was held")
    dead = shop.ids(shop.dead.name)
    assert dead == sorted(dead), "those that stayed are not in their order"
    alive = shop.ids(shop.queue)
    assert dead
    balances(ids, Counter(alive + dead), 3)


def test_replay_of_some_killed_in_the_middle_keeps_the_others_in_their_order(shop: Shop) -> None:
    ids = shop.fill(2000)
    killed(shop, lambda: shop.count(shop.queue) >= 100, "replay", "--match", "tenant=b")
    wait_for(lambda: shop.count(shop.queue) + shop.count(shop.dead.name) >= 2000, "what was held")
    dead = shop.ids(shop.dead.name)
    assert [one for one in dead if one in set(ids[0::2])] == ids[0::2]
    assert dead == sorted(dead)
    balances(ids, Counter(shop.ids(shop.queue) + dead), 1)


def test_purge_of_some_killed_in_the_middle_keeps_all_others(shop: Shop) -> None:
    ids = shop.fill(4000)
    killed(shop, lambda: 0 < shop.count(shop.dead.name) < 3000, "purge", "--match", "tenant=b", "--yes")

    def is_back() -> bool:
        found: Any = shop.channel.queue_declare(shop.dead.name, passive=True).method
        return bool(found.message_count and not found.consumer_count)  # both are 0 where it did not answer

    wait_for(is_back, "what was held")
    left = shop.ids(shop.dead.name)
    assert [one for one in left if one in set(ids[0::2])] == ids[0::2]
    assert left == sorted(left)
    assert len(left) > 2000, "it was not in the middle"


def test_import_killed_in_the_middle_can_go_on_from_there(shop: Shop) -> None:
    ids = shop.fill(1000)
    shop.says("export", "dead.jsonl", "--remove")
    shop.waits_for(0)
    pid = killed(shop, lambda: shop.count(shop.dead.name) >= 100, "import", "dead.jsonl")
    wait_for(lambda: f"(pid {pid})" not in " ".join(shop.node.connections()), "the end of its connection")
    there = shop.ids(shop.dead.name)
    lines = (shop.place / "dead.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1000
    assert 100 <= len(there) < 1000
    (shop.place / "rest.jsonl").write_text("".join(lines[len(there) :]))
    shop.says("import", "rest.jsonl")
    assert there + shop.ids(shop.dead.name) == ids


# A queue that is slow

#: Nothing of what comes to a quorum queue is done until somebody waits for an answer, or has left.
STUCK = """
Queue = whereis('%2F_{}'), sys:suspend(Queue),
spawn(fun Wait() ->
    {{messages, Came}} = process_info(Queue, messages),
    case [One || One <- Came, lists:member(element(1, One), ['$gen_call', 'DOWN'])] of
        [] -> timer:sleep(1), Wait();
        _ -> sys:resume(Queue)
    end
end).
"""


#: It stands still for so long that RabbitMQ gives up asking it how many messages it has, and says none.
SILENT = """
Queue = whereis('%2F_{}'), sys:suspend(Queue),
spawn(fun() -> timer:sleep(600), sys:resume(Queue) end).
"""


@pytest.fixture
def in_process(tmp_path: Path, node: RabbitMQNode) -> Iterator[tuple[Shop, State]]:
    """A shop on RabbitMQ, and what a reader in this process takes."""
    app, fpika = make_app(node.params)
    with app.app_context():
        state = fpika._state()
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(node.url))) as connection:
        shop = Shop(tmp_path, node, connection.channel())
        yield shop, state
        shop.channel.queue_delete(shop.queue)
        shop.channel.queue_delete(shop.dead.name)


def test_a_queue_that_is_silent_is_not_taken_for_an_empty_one(
    in_process: tuple[Shop, State], node: RabbitMQNode
) -> None:
    shop, state = in_process
    shop.fill(3)
    with DeadReader(state, "shop", shop.queue, lambda: False) as reader:
        node.ctl("eval", SILENT.format(shop.dead.name))
        assert reader.count() == 3


@pytest.mark.parametrize(
    ("looked_at", "first", "every"), [(0, 1000, 1), (400, 1000, 2), (400, 500, 1), (0, 500, 2)]
)
def test_what_was_removed_is_gone_though_the_queue_was_slow(
    in_process: tuple[Shop, State], node: RabbitMQNode, looked_at: int, first: int, every: int
) -> None:
    shop, state = in_process
    ids = shop.fill(1000)
    with DeadReader(state, "shop", shop.queue, lambda: False) as reader:
        list(itertools.islice(reader.letters(1000, all_kept=True, first=400), looked_at))
    with DeadReader(state, "shop", shop.queue, lambda: False) as reader:
        letters = list(itertools.islice(reader.letters(1000, all_kept=True), first))
        node.ctl("eval", STUCK.format(shop.dead.name))
        for letter in letters[::every]:
            reader.remove_tag(letter.tag)
    shop.waits_for(1000 - len(letters[::every]))
    gone = {letter.properties.message_id for letter in letters[::every]}
    assert shop.ids(shop.dead.name) == [one for one in ids if one not in gone]


@pytest.mark.parametrize("count", [2000, 60])
def test_replay_that_is_killed_has_none_twice_though_the_queue_was_slow(
    in_process: tuple[Shop, State], node: RabbitMQNode, count: int
) -> None:
    shop, state = in_process
    ids = shop.fill(count)
    with DeadReader(state, "shop", shop.queue, lambda: False) as reader:
        letters = reader.letters(2000, all_kept=True)
        revived = [next(letters)]
        node.ctl("eval", STUCK.format(shop.dead.name))
        reader.revive(revived[0])
        for letter in itertools.islice(letters, 55):
            reader.revive(letter)
            revived.append(letter)
        reader._slot.abandon()
        reader._windows = 0
        shop.waits_for(count - len(revived), alive=len(revived))
    assert shop.ids(shop.queue) + shop.ids(shop.dead.name) == ids


# Many of them, and none


@pytest.mark.timeout(300)  # half a minute by itself
def test_ten_thousand_stay_out_of_memory_and_take_seconds(shop: Shop) -> None:
    (shop.place / "app.py").write_text(APP + PEAK)

    def peak(*args: str) -> int:
        with Path(os.devnull).open("w") as nowhere:
            subprocess.run(shop.argv(*args), cwd=shop.place, env=shop.env, stdout=nowhere, check=True)
        return int((shop.place / "peak").read_text().split("VmHWM:")[1].split()[0])

    shop.fill(10_000, b"x" * 10_000)  # 100 MB
    least = peak("list", shop.queue, "--limit", "1")
    for args in (
        *(["list", shop.queue, "--limit", "10000"], ["list", shop.queue, "--match", "tenant=c"]),
        *(["export", shop.queue, "dead.jsonl"], ["purge", shop.queue, "--yes", "--match", "tenant=b"]),
    ):
        assert peak(*args) < least + 40_000, args
    assert (shop.place / "dead.jsonl").stat().st_size > 100_000_000
    shop.waits_for(5000)
    assert shop.ids(shop.dead.name) == [f"id-{number:05}" for number in range(0, 10_000, 2)]


def test_progress_is_shown_to_a_person(shop: Shop) -> None:
    shop.fill(20)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shop.argv("replay", shop.queue, "--rate", "200"),
        cwd=shop.place,
        env=shop.env,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 10_000):
            said += data
    except OSError:  # its end
        pass
    os.close(ours)
    assert process.wait(30) == 0
    assert b"Replaying" in said
    assert b"100%" in said


@pytest.mark.parametrize(
    "command", [["list"], ["show", "x"], ["replay"], ["purge"], ["export", "x"], ["import", "app.py"]]
)
def test_no_dead_letters_and_no_broker_are_one_line(shop: Shop, command: list[str]) -> None:
    shop.channel.queue_delete(shop.dead.name)
    said = shop.says(*command, code=1)
    assert f"there is no queue '{shop.dead.name}'" in said
    assert len(said.splitlines()) == 1
    shop.env["FLASK_PIKA_PARAMS"] = f"amqp://127.0.0.1:{free_port()}"
    said = shop.says(*command, code=1)
    assert said.startswith("Error: cannot connect to RabbitMQ")
    assert len(said.splitlines()) == 1
    assert not (shop.place / "x").exists()


def test_an_app_with_several_objects_says_which_one(shop: Shop) -> None:
    (shop.place / "app.py").write_text(TWO)
    assert "say --config-prefix: FLASK_PIKA, OTHER" in shop.says("list", code=2)
    assert "this app has FLASK_PIKA, OTHER" in shop.says("list", "--config-prefix", "X", code=2)
    assert "0 of 0 dead letters" in shop.says("list", "--config-prefix", "OTHER")


@pytest.mark.parametrize("comes", ["before", "after"])
def test_of_an_export_that_is_stopped_it_is_known_whether_the_file_was_written(
    tmp_path: Path, comes: str
) -> None:
    path, written = tmp_path / "dead.jsonl", threading.Event()
    with dead_tasks._file(path, lambda: comes == "before", written) as out:
        out.write(b"{}\n")
    # A Ctrl-C that comes now changes nothing of it.
    assert written.is_set() is path.exists() is (comes == "after")
    assert len(list(tmp_path.iterdir())) == (comes == "after")
