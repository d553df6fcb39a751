"""A broker node: from what the configuration says to pika parameters, made afresh for each connect."""

from __future__ import annotations

import copy
import difflib
import math
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from pika.connection import ConnectionParameters, Parameters, SSLOptions, URLParameters
from pika.credentials import ExternalCredentials, PlainCredentials

from .errors import ConfigError

#: Bounds in seconds where pika has none, or wider ones than a web request can wait. Two heartbeats that
#: nobody answered, or this long under a resource alarm, end a call that would hang. All of them stay below
#: the 30 seconds after which gunicorn kills a worker.
BOUNDS: Mapping[str, Any] = {
    "socket_timeout": 5.0,
    "stack_timeout": 10.0,
    "blocked_connection_timeout": 20.0,
    "heartbeat": 10,
}

_CREDENTIALS = ("username", "password", "credentials")
# The keywords of pika.ConnectionParameters. Parameters names its slots after them.
_PIKA_KEYS = tuple(sorted(slot.lstrip("_") for slot in Parameters.__slots__))
_KEYS = tuple(sorted({*_PIKA_KEYS, *_CREDENTIALS}))
# The query options that pika.URLParameters documents.
_URL_OPTIONS = tuple(key for key in _PIKA_KEYS if key not in {"credentials", "host", "port", "virtual_host"})
_MAY_HOLD_SECRETS = {*_CREDENTIALS, "ssl_options", "client_properties"}


class Node:
    """One broker node, as configured; :meth:`parameters` makes what pika needs to connect to it.

    It holds a template that pika never sees: while it connects, ``BlockingConnection`` sets ``ssl_options``
    to None on the parameters it was given, and a second thread with the same object would connect in
    plaintext.
    """

    __slots__ = ("_template",)

    def __init__(self, template: Parameters) -> None:
        self._template = template

    @property
    def host(self) -> str:
        """The host's name or address, as configured."""
        return self._template.host

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._template.port

    @property
    def attempts(self) -> int:
        """How often one connect tries this node (pika's ``connection_attempts``, 1 by default)."""
        return self._template.connection_attempts

    @property
    def retry_delay(self) -> float:
        """Seconds between those attempts (pika's ``retry_delay``)."""
        return self._template.retry_delay

    @property
    def heartbeat(self) -> int | None:
        """The heartbeat interval in seconds; None when it is left to the broker or to a function."""
        value = self._template.heartbeat
        return value if isinstance(value, int) else None

    def parameters(self, *, address: str, connection_name: str, timeout: float) -> Parameters:
        """New parameters for one connect to one address of this node, within ``timeout`` seconds."""
        fresh = copy.copy(self._template)
        fresh.host = address
        fresh.connection_attempts = 1
        fresh.socket_timeout = min(timeout, fresh.socket_timeout or math.inf)
        fresh.stack_timeout = min(timeout, fresh.stack_timeout or math.inf)
        fresh.client_properties = {
            "connection_name": connection_name,
            **(fresh.client_properties or {}),
        }
        tls = fresh.ssl_options
        if tls is not None and tls.server_hostname is None:
            # The address stands in for the host, so pika can no longer fill in the name to be verified.
            fresh.ssl_options = SSLOptions(tls.context, server_hostname=self.host)
        return fresh

    def __str__(self) -> str:
        scheme = "amqps" if self._template.ssl_options is not None else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{quote(self._template.virtual_host, safe='')}"

    def __repr__(self) -> str:
        return f"<Node {self}>"


def parse_nodes(value: object, key: str) -> tuple[Node, ...]:
    """The nodes that a configuration value names; ``key`` is what errors call it.

    :raises ConfigError: names the key, what was expected, and the nearest key that exists.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if not value:
            raise ConfigError(f"{key} is an empty list; expected one entry per node of the cluster")
        return tuple(_parse_node(entry, f"{key}[{at}]") for at, entry in enumerate(value))
    return (_parse_node(value, key),)


def _parse_node(value: object, key: str) -> Node:
    if value is None:
        return Node(_from_mapping({}, key))
    if isinstance(value, Parameters):
        return Node(_from_parameters(value))
    if isinstance(value, str):
        return Node(_from_url(value, key))
    if isinstance(value, Mapping):
        return Node(_from_mapping(value, key))
    raise ConfigError(
        f"{key} is a {type(value).__name__}; expected a dict of connection parameters, an amqp:// or"
        " amqps:// URL, a pika Parameters object, or a list of these"
    )


def _from_parameters(value: Parameters) -> Parameters:
    template = copy.copy(value)
    # In pika's objects None is "not set". The connect times have bounds of pika's own.
    if template.blocked_connection_timeout is None:
        template.blocked_connection_timeout = BOUNDS["blocked_connection_timeout"]
    if template.heartbeat is None:
        template.heartbeat = BOUNDS["heartbeat"]
    return template


def _from_mapping(value: Mapping[Any, Any], key: str) -> Parameters:
    check_keys(value, _KEYS, key)
    template = ConnectionParameters()
    settings = {**BOUNDS, **value}
    credentials = _credentials(settings, key)
    if credentials is not None:
        template.credentials = credentials

    host = settings.get("host", template.host)
    if not isinstance(host, str) or not host or "/" in host:
        raise ConfigError(
            f"{key}['host'] is {host!r}; expected the name or address of the broker"
            f" (a URL goes into {key} itself)"
        )
    if host.count(":") == 1:
        raise ConfigError(f"{key}['host'] is {host!r}; expected the host alone, with the port in 'port'")
    template.ssl_options = _ssl_options(settings.pop("ssl_options", None), host, key)
    default_port = template.DEFAULT_SSL_PORT if template.ssl_options else template.DEFAULT_PORT
    settings["port"] = _port(settings.get("port", default_port), key)

    for name, setting in settings.items():
        if isinstance(setting, float) and not math.isfinite(setting):
            raise ConfigError(f"{key}[{name!r}] is {setting!r}; expected a finite number")
        if isinstance(setting, bool):
            raise ConfigError(f"{key}[{name!r}] is {setting!r}; expected another type than bool")
        try:
            setattr(template, name, copy.copy(setting))
        except (TypeError, ValueError) as exc:
            if name in _MAY_HOLD_SECRETS:
                # Not chained: pika's message repeats the value.
                problem = f"is a {type(setting).__name__}, which pika does not accept"
                raise ConfigError(f"{key}[{name!r}] {problem}") from None
            raise ConfigError(f"{key}[{name!r}]: {exc}") from exc
    return template


def _credentials(settings: dict[Any, Any], key: str) -> PlainCredentials | ExternalCredentials | None:
    """Take the three credential keys out of ``settings``; None leaves pika's default, guest."""
    credentials = settings.pop("credentials", None)
    username = settings.pop("username", None)
    password = settings.pop("password", None)
    if credentials is not None:
        if username is not None or password is not None:
            raise ConfigError(
                f"{key} has 'credentials' and also 'username' or 'password'; give one or the other"
            )
        if not isinstance(credentials, (PlainCredentials, ExternalCredentials)):
            raise ConfigError(
                f"{key}['credentials'] is a {type(credentials).__name__}; expected"
                " pika.PlainCredentials or pika.credentials.ExternalCredentials"
            )
        return credentials
    if username is None and password is None:
        return None
    for name, part in (("username", username), ("password", password)):
        if not isinstance(part, str):
            what = "missing" if part is None else f"a {type(part).__name__}"
            raise ConfigError(f"{key}[{name!r}] is {what}; 'username' and 'password' go together, both text")
    return PlainCredentials(str(username), str(password))


def _ssl_options(value: object, host: str, key: str) -> SSLOptions | None:
    if value is None or value is False:
        return None
    if value is True:
        value = ssl.create_default_context()
    if isinstance(value, ssl.SSLContext):
        return SSLOptions(value, server_hostname=host)
    if isinstance(value, SSLOptions):
        return value
    raise ConfigError(
        f"{key}['ssl_options'] is a {type(value).__name__}; expected an ssl.SSLContext, True for the"
        " system's defaults, or pika.SSLOptions"
    )


def _port(value: object, key: str) -> int:
    try:
        if not isinstance(value, (int, str)) or isinstance(value, bool):
            raise ValueError
        port = int(value)
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{key}['port'] is {value!r}; expected a number from 1 to 65535") from None
    return port


def _from_url(url: str, key: str) -> Parameters:
    # No error here shows the URL, or chains one that might: a password with a bare '/' or ':' in it ends up
    # in urllib's messages.
    hint = "a reserved character in the user name, the password or the virtual host must be %-encoded"
    form = "amqp://user:password@host:5672/virtual-host?option=value"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{key} has no valid host and port; expected {form} ({hint})") from None
    if parts.scheme not in ("amqp", "amqps"):
        raise ConfigError(f"{key} is not an amqp:// or amqps:// URL; expected {form}")
    if port == 0:
        raise ConfigError(f"{key} has port 0; expected a number from 1 to 65535")
    if parts.username is not None and parts.password is None:
        raise ConfigError(f"{key} has a user name without a password; expected {form}")
    if "/" in parts.path[1:] or parts.fragment:
        raise ConfigError(f"{key} has more than one part after the host; {hint}, a '/' as %2f")
    options = parse_qsl(parts.query, keep_blank_values=True)
    check_keys((name for name, _ in options), _URL_OPTIONS, f"{key} (its query)")
    for name, text in options:
        # One at a time, so that the error can name it.
        try:
            URLParameters(f"{parts.scheme}://host/?{name}={quote(text, safe='')}")
        except (TypeError, ValueError, SyntaxError, AttributeError, OSError) as exc:
            shown = "" if name in _MAY_HOLD_SECRETS else f": {exc}"
            raise ConfigError(f"{key}: pika rejects the option {name!r}{shown}") from None
    try:
        template = URLParameters(url)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} has an option twice, or cannot be read; expected {form}") from None
    for name in BOUNDS.keys() - {name for name, _ in options}:
        setattr(template, name, BOUNDS[name])
    return template


def check_keys(given: Iterable[Any], known: Iterable[str], key: str) -> None:
    """Refuse a key that does not exist, and name the nearest one that does."""
    known = tuple(known)
    for name in given:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise ConfigError(f"{key} has no key {name!r}; {advice}")
