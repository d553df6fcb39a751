"""Scenarios 5: certificates that do not fit, on both sides; and never a word in clear."""

from __future__ import annotations

import collections
import copy
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pika
import pytest

from flask_pika import TLSRefused
from flask_pika.nodes import Node
from tests.conftest import make_app, wait_for
from tests.faults import lab as _lab
from tests.faults.lab import Lab, Scenario, Setting
from tests.faults.programs import ROOT, WorkerProgram
from tests.faults.report import Report
from tests.faults.tls import Recorder, TLSSite, tls_site
from tests.stand_ins import peer

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

GROUP = 5
THREADS = 32
#: Seconds that a call may take.
DEADLINE = 60.0


@pytest.fixture(scope="module")
def site(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSSite]:
    with tls_site(records, tmp_path_factory.mktemp("tls") / "certificates") as made:
        yield made


@pytest.fixture
def whole(site: TLSSite) -> Iterator[TLSSite]:
    """The node with a certificate that fits, and nothing noted yet."""
    site.show("good")
    site.recorder.taken()
    yield site
    site.recorder.cut()  # RabbitMQ takes its time to see a client off


# All ways to the broker, from many threads at once


@dataclass(frozen=True)
class Call:
    """What became of one call: the error, or none."""

    way: str
    error: Exception | None
    took: float


def call_all_at_once(
    params: object,
    during: Callable[[], None] = lambda: None,
    threads: int = THREADS,
    deadline: float = DEADLINE,
) -> list[Call]:
    """All threads ask for a channel at the same time, keep it, and publish.

    :param during: called when all have a channel, if they get one.
    """
    _app, fpika = make_app(params, {"pool_size": threads}, name="lab")
    begin, end = threading.Barrier(threads), threading.Barrier(threads + 1)
    calls: list[Call] = []

    def ask(way: str, what: Callable[[], Any]) -> Any:
        began, error, got = time.monotonic(), None, None
        try:
            got = what()
        except Exception as exc:
            error = exc
        calls.append(Call(way, error, time.monotonic() - began))
        return got

    def work() -> None:
        begin.wait(DEADLINE)
        ch = ask("channel", lambda: fpika.channel(timeout=deadline))
        ask("publish", lambda: fpika.publish(b"", routing_key="none", mandatory=False, timeout=deadline))
        end.wait(4 * DEADLINE)
        end.wait(4 * DEADLINE)
        if ch is not None:
            fpika.return_channel(ch)

    crowd = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    try:
        end.wait(4 * DEADLINE)
        during()
        end.wait(4 * DEADLINE)
    finally:
        for thread in crowd:
            thread.join(DEADLINE)
        fpika.close()
    return calls


def findings(calls: list[Call], said: tuple[str, ...], clear: list[str]) -> dict[str, list[str]]:
    """By its kind, each thing that should not have happened.

    :param said: of which each refusal has to say one; empty: nothing may be refused.
    """
    found = collections.defaultdict(list)
    for call in calls:
        if said and call.error is None:
            found["accepted"].append(f"{call}")
        elif said and not (
            isinstance(call.error, TLSRefused) and any(one in str(call.error) for one in said)
        ):
            found["an error that does not say it"].append(f"{call}")
        elif not said and call.error is not None:
            found["refused"].append(f"{call}")
        if call.took > DEADLINE:
            found["later than its deadline"].append(f"{call}")
    found["in clear"] = clear
    return {kind: those for kind, those in found.items() if those}


def says(text: str, said: tuple[str, ...]) -> bool:
    return any(one in text for one in said)


def refusals(calls: list[Call]) -> collections.Counter[str]:
    return collections.Counter(type(call.error).__name__ for call in calls if call.error is not None)


# What does not fit


@dataclass(frozen=True)
class Misfit:
    """A certificate that one side does not accept.

    :ivar shown: the node's: see :meth:`Certificates.show`.
    :ivar client: whether the client has one.
    :ivar said: what the error says; of several, any.
    """

    name: str
    said: tuple[str, ...]
    shown: str = "good"
    client: bool = True
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3


WANTED = "does it want a client certificate"
MISFITS = [
    Misfit("an expired certificate", ("certificate has expired",), "expired"),
    Misfit("a certificate for another host", ("not valid for 'localhost'",), "for another name"),
    Misfit(
        "a certificate of an authority that is not trusted",
        ("unable to get local issuer certificate", "self-signed certificate", "self signed certificate"),
        "of a stranger",
    ),
    Misfit("no client certificate, where one is required (TLS 1.3)", (WANTED,), client=False),
    Misfit(
        "no client certificate, where one is required (TLS 1.2)",
        (WANTED,),
        client=False,
        version=ssl.TLSVersion.TLSv1_2,
    ),
]
misfits = pytest.mark.parametrize("misfit", MISFITS, ids=lambda misfit: misfit.name)


def programs_env(url: str, place: Path) -> dict[str, str]:
    return {
        "FLASK_PIKA_PARAMS": url,
        "QUEUE": "none",
        "LEDGER": str(place / "ledger"),
        "WORK": "0",
    }


def ping(env: dict[str, str]) -> tuple[int, str]:
    """The exit code of ``flask pika ping``, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "tests.faults.app", "pika", "ping", "--timeout", "60"],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@misfits
def test_what_does_not_fit_is_refused_in_words_and_never_in_clear(
    misfit: Misfit, round_: int, whole: TLSSite, report: Report
) -> None:
    certificates, recorder = whole.certificates, whole.recorder
    taken = whole.node.log().count("accepting AMQP connection")
    whole.show(misfit.shown)
    place = whole.records / f"tls-{whole.number()}"
    place.mkdir()
    env = programs_env(certificates.url(recorder.port, client=misfit.client), place)
    context = certificates.context(client=misfit.client)
    context.maximum_version = misfit.version
    with WorkerProgram(env, place / "worker.log") as worker:
        calls = call_all_at_once(whole.params(context))
        code, told = ping(env)
        wait_for(lambda: says(worker.said, misfit.said), lambda: worker.said, 60)
        assert worker.is_running  # it tries on: the certificate may be renewed
        (place / "ping.log").write_text(told)
        connections, clear = recorder.taken()
        found = findings(calls, misfit.said, clear)
        assert not found, found
        assert code == 1
        assert says(told, misfit.said), told
        assert connections >= 3
        assert whole.node.log().count("accepting AMQP connection") == taken
    report.add(
        GROUP,
        misfit.name,
        setting=f"{THREADS} threads at once, a worker, flask pika ping",
        tried=len(calls) + 2,
        accepted=0,
        refused=refusals(calls),
        longest_over=max(call.took for call in calls) - DEADLINE,
    )


@misfits
def test_an_app_that_does_not_look_at_certificates_is_caught(
    misfit: Misfit, whole: TLSSite, report: Report
) -> None:
    whole.show(misfit.shown)
    calls = call_all_at_once(whole.params(whole.certificates.context(verify=False)), threads=8)
    found = findings(calls, misfit.said, whole.recorder.taken()[1])
    assert set(found) == {"accepted"}, found
    stand_in = "no verification" if misfit.client else "a client that shows one"
    report.add_caught(GROUP, misfit.name, stand_in, f"{len(found['accepted'])} accepted")


# What fits

FITS = "32 threads that connect at once, with certificates that fit on both sides"


def test_all_threads_that_connect_at_once_speak_tls(round_: int, whole: TLSSite, report: Report) -> None:
    def look() -> None:
        # Those of the test before may take their time to be gone.
        wait_for(lambda: len(seen := whole.speak_tls()) == THREADS + 1 and all(seen), "all, by TLS")

    calls = call_all_at_once(whole.params(whole.certificates.context()), look)
    connections, clear = whole.recorder.taken()
    found = findings(calls, (), clear)
    assert not found, found
    assert connections == THREADS + 1
    place = whole.records / f"tls-{whole.number()}"
    place.mkdir()
    code, told = ping(programs_env(whole.certificates.url(whole.recorder.port), place))
    (place / "ping.log").write_text(told)
    assert code == 0, told
    report.add(
        GROUP,
        FITS,
        setting=f"{THREADS} threads at once, flask pika ping",
        tried=len(calls) + 1,
        accepted=len(calls) + 1,
        longest_over=max(call.took for call in calls) - DEADLINE,
    )


class _Shared(pika.ConnectionParameters):
    """Takes its time to be copied, as on a busy machine; pika has set its ``ssl_options`` to None then."""

    def __deepcopy__(self, _memo: object) -> _Shared:
        time.sleep(0.02)
        return copy.copy(self)


def test_parameters_that_threads_share_are_caught(
    whole: TLSSite, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = pika.SSLOptions(whole.certificates.context(), "localhost")
    credentials = pika.PlainCredentials("guest", "guest")
    shared = _Shared("127.0.0.1", whole.recorder.port, "/", credentials, ssl_options=options)
    monkeypatch.setattr(Node, "parameters", lambda *_, **__: shared)
    calls = call_all_at_once(whole.params(whole.certificates.context()), deadline=5.0)
    found = findings(calls, (), whole.recorder.taken()[1])
    assert "in clear" in found, found
    report.add_caught(GROUP, FITS, "shared parameters", f"{len(found['in clear'])} in clear")


def test_a_port_without_tls_hears_nothing_in_clear(whole: TLSSite, report: Report) -> None:
    """A peer that answers in clear: the node's port without TLS, and one that hangs up."""
    name = "a port without TLS where TLS is configured"
    context = whole.certificates.context()
    all_calls: list[Call] = []
    with peer(b"AMQP\x00\x00\x09\x01") as port:
        for target in (whole.node.port, port):
            with Recorder(target) as recorder:
                params = {**whole.params(context), "port": recorder.port}
                calls = call_all_at_once(params)
                connections, clear = recorder.taken()
            found = findings(calls, ("is this the broker's TLS port?",), clear)
            assert not found, found
            assert connections >= 2
            all_calls += calls
    report.add(
        GROUP,
        name,
        setting=f"{THREADS} threads at once",
        tried=len(all_calls),
        accepted=0,
        refused=refusals(all_calls),
        longest_over=max(call.took for call in all_calls) - DEADLINE,
    )
    with Recorder(whole.node.port) as recorder:
        plain = {**whole.params(context), "port": recorder.port, "ssl_options": None}
        found = findings(call_all_at_once(plain), ("is this the broker's TLS port?",), recorder.taken()[1])
    assert {"accepted", "in clear"} <= set(found), found
    report.add_caught(GROUP, name, "no TLS", f"{len(found['in clear'])} in clear")


# Under load


def tls_lab(lab: Lab) -> TLSSite:
    assert isinstance(lab.site, TLSSite)
    return lab.site


def expire_and_renew(lab: Lab) -> None:
    """What is connected goes on; after a crash, who connects is refused until the certificate is renewed."""
    site = tls_lab(lab)
    site.show("expired")
    lab.goes_on()
    with lab.disturbed():
        with site.node.frozen():
            lab.is_held_up()
            site.node.kill()
        site.node.start()
        if not lab.stand_in:
            wait_for(lambda: any(a.error == "TLSRefused" for a in lab.load.answers), "a refusal", 60)
        site.show("good")
        lab.returned()
        lab.goes_on()


SCENARIOS = [
    Scenario(
        GROUP,
        "kill -9 of the node over TLS; when it is back, its certificate has expired, and is renewed",
        expire_and_renew,
        # As many threads in each process as there are clients: nobody waits for a thread.
        Setting(options=["--threads=8"], refusals=["TLSRefused"]),
    ),
]


def with_tls(scenario: Scenario, site: TLSSite) -> Scenario:
    """The same, with programs that speak TLS."""
    env = {"FLASK_PIKA_PARAMS": json.dumps([site.certificates.url(site.recorder.port)])}
    return replace(scenario, setting=replace(scenario.setting, env=env))


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost_over_tls(
    scenario: Scenario, round_: int, whole: TLSSite, report: Report, grace: float
) -> None:
    _lab.run(with_tls(scenario, whole), whole, report, grace=grace)
    connections, clear = whole.recorder.taken()
    assert connections > 2
    assert not clear


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Scenario, stand_in: str, whole: TLSSite, report: Report) -> None:
    _lab.run_stand_in(with_tls(scenario, whole), stand_in, whole, report)
