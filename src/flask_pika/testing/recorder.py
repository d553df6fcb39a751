"""Recording: what an app publishes is kept in a list instead of sent. Nothing connects."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

from pika import exceptions as pika_errors
from pika import frame, spec
from pika.spec import BasicProperties

from flask_pika.config import Settings
from flask_pika.confirms import Outcome
from flask_pika.declaring import Preparation
from flask_pika.jobs import Job, Part
from flask_pika.message import Message
from flask_pika.outbox import Outbox
from flask_pika.params import type_of
from flask_pika.pool import ChannelPool
from flask_pika.publisher import Publisher
from flask_pika.slot import Slot, Traces
from flask_pika.topology import Topology
from flask_pika.wire import Envelopes


class Recorder:
    """What an app publishes to while it is recorded: a publisher and a pool that send nothing.

    :param sender: the app, for signals.
    :param lists: where messages are kept: called for each one. Empty when no recording is open.
    """

    def __init__(
        self,
        settings: Settings,
        sender: Callable[[], Any],
        lists: Callable[[], Sequence[list[Message]]],
    ) -> None:
        def keep(*messages: Message) -> None:
            open_lists = lists()
            if not open_lists:  # nobody would ever see it, neither a test nor a broker
                raise RuntimeError(
                    "the recording has ended; nothing was kept or sent. Borrow a channel anew after"
                    " record_messages(), and let publish_many() end within it"
                )
            for kept in open_lists:
                kept.extend(messages)

        self.publisher = Publisher(
            settings.publisher,
            settings.nodes,
            lambda envelopes: _RecordingOutbox(settings, envelopes, sender, keep),
        )
        self.pool: ChannelPool[Slot] = ChannelPool(
            settings.pool, lambda: _RecordingSlot(keep), label="the recorder of messages"
        )

    def close(self) -> None:
        """Take and lend nothing from now on. Closing twice does nothing."""
        self.publisher.close(0.0)
        self.pool.close()


class _RecordingOutbox(Outbox):
    """An outbox whose broker confirms everything at once; its link is never started."""

    def __init__(
        self,
        settings: Settings,
        envelopes: Envelopes,
        sender: Callable[[], Any],
        keep: Callable[..., object],
    ) -> None:
        nothing = Preparation(Topology(), "never")
        super().__init__(
            settings.publisher, settings.nodes, "the recorder of messages", envelopes, sender, nothing
        )
        self._keep = keep

    def admit(self, job: Job) -> None:
        """Keep it, and settle it. There is always room: nothing is ever pending."""
        if self._closed:
            raise self._closed_error()
        envelope = job.envelope
        message = Message(
            job.body,
            exchange=envelope.exchange,
            routing_key=envelope.routing_key,
            mandatory=envelope.mandatory,
            properties=envelope.complete(job.message_id, job.timestamp),
        )
        try:
            self._keep(message)
        except RuntimeError:
            if isinstance(job, Part):  # publish_many() would wait for it until its deadline
                job.run.on_their_way.pop(job.index, None)
            raise
        job.sent = True
        job.outcome = Outcome.CONFIRMED
        with self._lock:
            self._counts[Outcome.CONFIRMED] += 1
        self.finish([job])


class _RecordingSlot(Slot):
    """A slot whose connection is none."""

    __slots__ = ("_keep",)

    def __init__(self, keep: Callable[..., object]) -> None:
        self._keep = keep
        super().__init__(dial=_never, gate=None)  # type: ignore[arg-type]

    @property
    def is_connected(self) -> bool:
        return self.channel is not None

    def open(self, *, asked_at: float, deadline: float) -> bool:  # noqa: ARG002
        fresh = self.channel is None
        if fresh or not self.is_open:
            channel: Any = _RecordingChannel(self._keep)
            self._begin_channel(channel)
            self.born = time.monotonic()
        return fresh

    def probe(self) -> bool:
        return self.is_open

    def serve(self) -> bool:
        return self.is_open

    def clean(self, within: float = 0.0) -> bool:  # noqa: ARG002
        if self.traces is not Traces.NONE:
            self.forget()
        return self.channel is not None

    def close(self, within: float = 0.0) -> None:  # noqa: ARG002
        self.forget()

    abandon = close


def _never(_deadline: float) -> Any:
    raise RuntimeError("a recorder connects to nothing")


class _RecordingConnection:
    """What a recording channel has for a connection."""

    is_open = True
    is_closed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: None


class _RecordingChannel:
    """Does what pika's channel does on a broker that has whatever is declared, and no message for anybody."""

    channel_number = 1

    def __init__(self, keep: Callable[..., object]) -> None:
        self._keep = keep
        self._transaction: list[Message] | None = None
        self.is_open = True
        self.connection = _RecordingConnection()

    @property
    def is_closed(self) -> bool:
        return not self.is_open

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: str | bytes,
        properties: BasicProperties | None = None,
        mandatory: bool = False,
    ) -> None:
        if not self.is_open:
            raise pika_errors.ChannelWrongStateError("Channel is closed.")  # as pika's says it
        if not isinstance(body, (str, bytes)):
            raise TypeError(f"body is {type_of(body)}; expected str or bytes")
        content = body.encode() if isinstance(body, str) else body
        make: Any = BasicProperties  # pika's generated classes are not annotated
        publish: Any = spec.Basic.Publish
        # As pika does, whose own errors come out of this. What it encoded can be copied as well.
        given: BasicProperties = properties or make()
        method = publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
        frame.Method(self.channel_number, method).marshal()
        frame.Header(self.channel_number, len(content), given).marshal()
        message = Message(
            content,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            properties=copy.deepcopy(given),  # the caller may use its own again, for the next message
        )
        if self._transaction is None:
            self._keep(message)
        else:
            self._keep()  # nothing yet, but say now whether there is a recording
            self._transaction.append(message)

    def tx_select(self) -> Any:
        self._transaction = self._transaction or []
        return _answer(spec.Tx.SelectOk)

    def tx_commit(self) -> Any:
        if self._transaction:
            self._keep(*self._transaction)
        self._transaction = []
        return _answer(spec.Tx.CommitOk)

    def tx_rollback(self) -> Any:
        self._transaction = []
        return _answer(spec.Tx.RollbackOk)

    def queue_declare(self, queue: str, *_args: Any, **_kwargs: Any) -> Any:
        return _answer(
            spec.Queue.DeclareOk, queue=queue or "amq.gen-recorded", message_count=0, consumer_count=0
        )

    def queue_delete(self, *_args: Any, **_kwargs: Any) -> Any:
        return _answer(spec.Queue.DeleteOk, message_count=0)

    def queue_purge(self, *_args: Any, **_kwargs: Any) -> Any:
        return _answer(spec.Queue.PurgeOk, message_count=0)

    def basic_get(self, *_args: Any, **_kwargs: Any) -> tuple[None, None, None]:
        return None, None, None

    def close(self, *_args: Any, **_kwargs: Any) -> None:
        self.is_open = False

    def basic_consume(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(
            "nothing comes from a broker while messages are recorded; test what consumes with the fixture"
            " pika_broker, or a flask_pika.broker.Broker"
        )

    consume = start_consuming = basic_consume

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {
            "exchange_declare": spec.Exchange.DeclareOk,
            "exchange_delete": spec.Exchange.DeleteOk,
            "exchange_bind": spec.Exchange.BindOk,
            "exchange_unbind": spec.Exchange.UnbindOk,
            "queue_bind": spec.Queue.BindOk,
            "queue_unbind": spec.Queue.UnbindOk,
        }
        if name in answers:
            return lambda *_args, **_kwargs: _answer(answers[name])
        if name in _WITHOUT_ANSWER:
            return lambda *_args, **_kwargs: None
        raise AttributeError(name)


_WITHOUT_ANSWER = (
    "add_on_cancel_callback",
    "add_on_return_callback",
    "basic_ack",
    "basic_cancel",
    "basic_nack",
    "basic_qos",
    "basic_recover",
    "basic_reject",
    "cancel",
    "confirm_delivery",
    "flow",
    "stop_consuming",
)


def _answer(method: Any, **fields: Any) -> Any:
    return frame.Method(1, method(**fields))
