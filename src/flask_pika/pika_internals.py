"""What Flask-Pika uses of pika that is not public API: all of it is here, with the public way behind it.

Pika's blocking calls have no deadline, a connection cannot be dropped without a conversation with its peer,
and the cheapest public probe costs 8 µs. All three need the socket or the I/O loop inside a
``BlockingConnection``. Where a later pika has them no more (checked below, at import), calls are bounded by
heartbeat and ``blocked_connection_timeout`` alone, the probe is the public one, and a goodbye to a peer that
does not answer goes on in a thread that nobody waits for.

A link's ``SelectConnection`` writes the frames of many messages at once and reads confirms without making an
object of each, which is most of its speed. The public way behind it is ``basic_publish`` and pika's callback
for acks, message by message.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pika import exceptions as pika_errors
from pika import spec
from pika.adapters.blocking_connection import BlockingConnection
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.connection import Connection
from pika.spec import BasicProperties

from .deliver_frames import Arrival, DeliverFrames

logger = logging.getLogger("flask_pika.connection")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:  # a later pika
        return None


_base = _module("pika.adapters.base_connection")
_transports = _module("pika.adapters.utils.io_services_utils")
_services = _module("pika.adapters.utils.selector_ioloop_adapter")


def _check() -> bool:
    """Whether this pika has the methods, and assigns the attributes, that are used below."""
    methods = ("_on_data_available", "_output_marshaled_frames", "_terminate_stream")
    if not all(callable(getattr(Connection, name, None)) for name in methods):
        return False
    wanted: list[tuple[type | None, str, tuple[str, ...]]] = [
        (BlockingConnection, "__init__", ("_impl",)),
        (getattr(_base, "BaseConnection", None), "__init__", ("_transport",)),
        (getattr(_transports, "_AsyncTransportBase", None), "__init__", ("_sock", "_tx_buffers")),
        (Connection, "_init_connection_state", ("_frame_buffer", "bytes_received", "bytes_sent")),
    ]
    # A tracing tool may have wrapped a method, and hidden its code: then the public way is taken.
    codes = [
        (getattr(getattr(owner, method, None), "__code__", None), names) for owner, method, names in wanted
    ]
    classes = ((_transports, "_AsyncPlaintextTransport"), (_services, "SelectorIOServicesAdapter"))
    return all(hasattr(module, name) for module, name in classes) and all(
        code is not None and set(names) <= set(code.co_names) for code, names in codes
    )


AVAILABLE = _check()


# For both kinds of connection: no frame is longer than agreed


class _FrameLimited(SelectConnection):
    """Gives up on a peer that begins a longer frame than was agreed on.

    Pika waits for the rest, and keeps all that comes: AMQP 0-9-1, section 4.2.3, has room for 4 GB.
    """

    def _read_frame(self) -> Any:
        parent: Any = super()
        consumed, found = parent._read_frame()
        if found is None:  # its rest is still to come
            self._check_size(_hidden(self)._frame_buffer)
        return consumed, found

    def _check_size(self, begun: bytes) -> None:
        if len(begun) < spec.FRAME_HEADER_SIZE or begun.startswith(_PROTOCOL):
            return
        size = struct.unpack_from(">I", begun, 3)[0]
        frame_max: int = self.params.frame_max
        if size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE > frame_max:
            raise pika_errors.InvalidFrameError(f"a frame of {size} bytes began; {frame_max} were agreed on")


#: How a frame begins that is none: a broker's word that it speaks another version.
_PROTOCOL = b"AMQP"
#: Whether pika reads frames, and makes connections, as the class above expects it.
_CAN_LIMIT_FRAMES = (
    callable(getattr(Connection, "_read_frame", None))
    and "_impl_class" in getattr(BlockingConnection.__init__, "__code__", _check.__code__).co_varnames
)


def asynchronous() -> type[SelectConnection]:
    """The class of a link's connection."""
    return _FrameLimited if AVAILABLE and _CAN_LIMIT_FRAMES else SelectConnection


def blocking() -> dict[str, Any]:
    """What a new ``BlockingConnection`` is given beyond its parameters, so that it is made of the same."""
    return {"_impl_class": _FrameLimited} if AVAILABLE and _CAN_LIMIT_FRAMES else {}


# For blocking connections


class DeadlineReached(Exception):
    """A call into pika was ended by :func:`bounded`. The connection is in no known state: drop it."""


@contextlib.contextmanager
def bounded(connection: BlockingConnection, seconds: float) -> Iterator[None]:
    """Calls into ``connection`` in this block end with :class:`DeadlineReached` after ``seconds``.

    A timer of the connection's own I/O loop raises it, which is safe only because the connection is dropped
    afterwards.
    """
    loop = _impl(connection).ioloop if AVAILABLE else None
    if loop is None:
        yield
        return
    timer = loop.call_later(max(0.0, seconds), _raise_deadline)
    try:
        yield
    finally:
        loop.remove_timeout(timer)


def _raise_deadline() -> None:
    raise DeadlineReached


@contextlib.contextmanager
def keeping_properties() -> Iterator[Callable[[BasicProperties], bytes]]:
    """In this block, deliveries have their properties as they came, too: what the function says of them.

    And those that pika cannot decode come without any, instead of ending the connection. Where that cannot be
    had, the function encodes them anew, as far as pika has them.
    """
    known = getattr(spec, "props", {})
    before = known.get(BasicProperties.INDEX)
    if before is BasicProperties:
        known[BasicProperties.INDEX] = _Kept
    try:
        yield lambda properties: getattr(properties, "encoded", None) or b"".join(_encoded(properties))
    finally:
        if before is BasicProperties:
            known[BasicProperties.INDEX] = before


class _Kept(BasicProperties):
    def decode(self, encoded: bytes, offset: int = 0) -> BasicProperties:
        self.encoded = bytes(encoded[offset:])
        parent: Any = super()  # pika's generated classes are not annotated
        try:
            parent.decode(encoded, offset)
        except Exception:  # of many types
            parent.__init__()
        return self


def _encoded(properties: Any) -> list[bytes]:
    pieces: list[bytes] = properties.encode()
    return pieces


def arrivals(connection: BlockingConnection) -> Callable[[], object] | None:
    """A function that says, in half a microsecond, whether the peer has sent or closed anything unread."""
    sock = _socket(connection)
    if sock is None or not hasattr(select, "poll"):
        return None
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)  # errors and hang-ups are always reported
    return functools.partial(poller.poll, 0)


def drop(connection: BlockingConnection) -> None:
    """Close the connection's socket now, without a word to the peer."""
    sock = _socket(connection)
    if sock is None:
        if connection.is_open:
            threading.Thread(
                target=_say_goodbye, args=(connection,), name="flask-pika-goodbye", daemon=True
            ).start()
        elif AVAILABLE:
            # One that was lost before pika's constructor was done is closed, and its I/O loop is not.
            _close_loop(_impl(connection))
        return
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    # Pika frees what it holds. Asked to do I/O, it would read some of what had come, and call back for it.
    impl = _impl(connection)
    impl._terminate_stream(pika_errors.StreamLostError("it was dropped"))
    impl.ioloop.process_timeouts()  # when that is done
    _close_loop(impl)


def _say_goodbye(connection: BlockingConnection) -> None:
    try:
        connection.close()
    except Exception as exc:
        logger.debug("a connection was closed without a goodbye: %r", exc)


def _close_loop(impl: Any) -> None:
    """Free the sockets and the poller of an I/O loop, which cannot be closed twice."""
    if getattr(impl.ioloop._poller, "_w_interrupt", None) is not None:
        impl.ioloop.close()


def server_properties(connection: BlockingConnection) -> dict[str, Any]:
    """What the broker said of itself in Connection.Start; empty when it can't be had."""
    return dict(_impl(connection).server_properties or {}) if AVAILABLE else {}


# For the connections of links


def abort(connection: Connection, error: BaseException) -> None:
    """End an asynchronous connection without a word to the peer; its callbacks get ``error``, soon."""
    if AVAILABLE and not connection.is_closed:
        lost = error if isinstance(error, Exception) else pika_errors.StreamLostError(repr(error))
        _hidden(connection)._terminate_stream(lost)
    elif not (connection.is_closing or connection.is_closed):
        connection.close()  # a conversation, which the heartbeat ends when the peer is silent


def is_shaking_hands(connection: Connection) -> bool:
    """Whether an asynchronous connection has a socket, and is not open yet."""
    opening = not (connection.is_open or connection.is_closing or connection.is_closed)
    return AVAILABLE and opening and _hidden(connection)._transport is not None


def close_socket(connection: Connection) -> None:
    """Close an asynchronous connection's socket, when nobody runs its loop any more."""
    transport = _hidden(connection)._transport if AVAILABLE else None
    if transport is not None and transport._sock is not None:
        transport._sock.close()


def services(loop: IOLoop) -> Any:
    """What an asynchronous connection does I/O with, on this loop."""
    if not AVAILABLE:
        return loop

    class Services(_services.SelectorIOServicesAdapter):  # type: ignore[misc,name-defined]
        """Pika looks every host up in a new thread; an address, in none.

        There are no new threads at the interpreter's end, in Python 3.12.1 not even for what is sent then.
        """

        def getaddrinfo(
            self,
            host: str,
            port: int,
            on_done: Callable[..., None],
            family: int = 0,
            socktype: int = 0,
            proto: int = 0,
            flags: int = 0,
        ) -> Any:
            try:
                numeric = flags | socket.AI_NUMERICHOST
                found = socket.getaddrinfo(host, port, family, socktype, proto, numeric)
            except OSError:  # a name
                return super().getaddrinfo(host, port, on_done, family, socktype, proto, flags)

            def done() -> None:
                try:
                    on_done(found)
                except OSError as exc:  # there is no descriptor for its socket, and it would never tell
                    on_done(exc)

            return self.call_later(0, done)

    return Services(loop)


def bytes_received(connection: Connection) -> int:
    """How much has come from the peer; a number that does not change where that can't be known."""
    received: int = getattr(connection, "bytes_received", 0)
    return received


def write(connection: Connection, data: bytes) -> None:
    """Send marshaled frames, whole messages of one open channel, in one piece."""
    hidden = _hidden(connection)
    plain = isinstance(hidden._transport, _transports._AsyncPlaintextTransport)
    if plain and not hidden._transport._tx_buffers:
        # At once, not at the loop's next turn: that is a third of the time that one message takes.
        with contextlib.suppress(OSError):  # which the loop will meet, too, and handle
            sent = hidden._transport._sock.send(data)
            hidden.bytes_sent += sent
            if sent == len(data):
                return
            data = data[sent:]
    hidden._output_marshaled_frames((data,))


#: A Basic.Ack or Basic.Nack as a frame: type, channel, size, method, delivery tag, bits, end.
_CONFIRM = struct.Struct(">BHIIQBB")
_CONFIRM_SIZE = 13  # of what is between header and end
_CONFIRMS = (spec.Basic.Ack.INDEX, spec.Basic.Nack.INDEX)
#: What a confirm says: delivery tag, multiple, whether it is an ack.
Confirm = tuple[int, bool, bool]


def watch_confirms(connection: Connection, watch: dict[int, Callable[[list[Confirm]], object]]) -> None:
    """Hand confirms to the function that ``watch`` has for their channel, in batches, as they arrive.

    Pika sees everything else, and the confirms of other channels, in the same order.
    """
    hidden = _hidden(connection)
    pikas = hidden._on_data_available
    held = b""

    def on_data(data: bytes) -> None:
        nonlocal held
        if hidden._frame_buffer:  # in the middle of a frame that is pika's
            pikas(data)
            return
        data = held + data
        held = b""
        at, size = 0, len(data)
        found: list[Confirm] = []
        channel = -1
        while size - at >= _CONFIRM.size:
            kind, number, length, method, tag, bits, end = _CONFIRM.unpack_from(data, at)
            if (
                kind != spec.FRAME_METHOD
                or length != _CONFIRM_SIZE
                or method not in _CONFIRMS
                or end != spec.FRAME_END
                or number not in watch
            ):
                break
            if number != channel:
                if found:
                    watch[channel](found)
                channel, found = number, []
            found.append((tag, bits & 1 == 1, method == spec.Basic.Ack.INDEX))
            at += _CONFIRM.size
        hidden.bytes_received += at  # the heartbeat's sign of life
        if found:
            watch[channel](found)
        rest = data[at:]
        if _may_become_confirm(rest, watch):
            held = rest
        elif rest:
            pikas(rest)

    hidden._on_data_available = on_data


def _may_become_confirm(rest: bytes, watch: dict[int, Any]) -> bool:
    """Whether it is the beginning of a frame of which too little is there to know better."""
    if len(rest) >= _CONFIRM.size:
        return False
    if len(rest) < spec.FRAME_HEADER_SIZE:
        return True
    kind, channel, length = struct.unpack_from(">BHI", rest)
    return kind == spec.FRAME_METHOD and length == _CONFIRM_SIZE and channel in watch


def watch_deliveries(connection: Connection, watch: Mapping[int, Callable[[list[Arrival]], object]]) -> None:
    """Hand deliveries to the function that ``watch`` has for their channel, in lists, as they arrive.

    Pika sees everything else, in the same order.
    """
    hidden = _hidden(connection)
    pikas = hidden._on_data_available
    frames = DeliverFrames(watch, pikas, hidden.params.frame_max or 2**32)

    def on_data(data: bytes) -> None:
        if hidden._frame_buffer:  # in the middle of a frame that is pika's
            pikas(data)
        else:
            # In two statements: pika adds to it, too, while this is called.
            taken = frames.feed(data)
            hidden.bytes_received += taken  # the heartbeat's sign of life

    hidden._on_data_available = on_data


# Ways into them


def _hidden(connection: Connection) -> Any:
    return connection  # to type checkers, it has no private attributes


def _impl(connection: BlockingConnection) -> Any:
    return getattr(connection, "_impl")  # noqa: B009 - hidden from type checkers, which know no such thing


def _socket(connection: BlockingConnection) -> socket.socket | None:
    if not AVAILABLE:
        return None
    transport = _impl(connection)._transport
    sock: socket.socket | None = None if transport is None else transport._sock
    return sock
