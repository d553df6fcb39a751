"""What ``FLASK_PIKA_PARAMS`` may say: a dict, a URL, a pika object or a list of these, to broker nodes."""

from __future__ import annotations

import copy
import difflib
import ipaddress
import math
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote

from pika import data as pika_data
from pika.connection import ConnectionParameters, Parameters, SSLOptions, URLParameters
from pika.credentials import ExternalCredentials, PlainCredentials

from .errors import ConfigError
from .nodes import EmbeddedNode, Node

#: Bounds in seconds where pika has none, or wider ones than a web request can wait. Two heartbeats that
#: nobody answered, or this long under a resource alarm, end a call that would hang. All of them stay below
#: the 30 seconds after which gunicorn kills a worker.
BOUNDS: Mapping[str, Any] = {
    "socket_timeout": 5.0,
    "stack_timeout": 10.0,
    "blocked_connection_timeout": 20.0,
    "heartbeat": 8,
}

_CREDENTIALS = ("username", "password", "credentials")
# The keywords of pika.ConnectionParameters. Parameters names its slots after them.
_PIKA_KEYS = tuple(sorted(slot.lstrip("_") for slot in Parameters.__slots__))
#: What a dict may have.
KEYS = tuple(sorted({*_PIKA_KEYS, *_CREDENTIALS}))
# The query options that pika.URLParameters documents.
_URL_OPTIONS = tuple(key for key in _PIKA_KEYS if key not in {"credentials", "host", "port", "virtual_host"})
# What pika passes on to setsockopt(); it ignores other names.
_TCP_OPTIONS = ("TCP_KEEPCNT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT")
_MAY_HOLD_SECRETS = {*_CREDENTIALS, "ssl_options", "client_properties"}
# What other libraries call them.
_MEANT = {
    "hostname": "host",
    "login": "username",
    "pass": "password",
    "passwd": "password",
    "ssl": "ssl_options",
    "ssl_context": "ssl_options",
    "timeout": "socket_timeout",
    "tls": "ssl_options",
    "user": "username",
    "userid": "username",
    "vhost": "virtual_host",
}

#: How the URL of the broker in this process begins.
_EMBEDDED = "embedded://"
_URL_FORM = "amqp://user:password@host:5672/virtual-host?option=value"
_URL_HINT = "a reserved character in the user name, the password or the virtual host must be %-encoded"
_URL = re.compile(
    r"""(?P<scheme>amqps?)://
    (?:(?P<user>[^:@/?\#\s]*)(?P<password>:[^@/?\#\s]*)?@)?
    (?P<host>\[[^\]@/?\#\s]*\]|[^:@/?\#\s\[\]]*)
    (?::(?P<port>[0-9]*))?
    (?:/[^@/?\#\s]*)?
    (?:\?(?P<query>[^@\#]*))?
    """,
    re.IGNORECASE | re.VERBOSE,
)


def parse_nodes(value: object, key: str) -> tuple[Node, ...]:
    """The nodes that a configuration value names; ``key`` is what errors call it.

    :raises ConfigError: names the key, what was expected, and the nearest key that exists; never a secret.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if not value:
            raise ConfigError(f"{key} is an empty list; expected one entry per node of the cluster")
        return tuple(_parse_node(entry, f"{key}[{at}]") for at, entry in enumerate(value))
    return (_parse_node(value, key),)


def _parse_node(value: object, key: str) -> Node:
    if isinstance(value, str) and value.strip().lower().startswith(_EMBEDDED):
        return _embedded_node(value.strip(), key)
    if value is None:
        template = _from_mapping({}, key)
    elif isinstance(value, Parameters):
        template = _from_parameters(value)
    elif isinstance(value, str):
        template = _from_url(value.strip(), key)
    elif isinstance(value, Mapping):
        template = _from_mapping(value, key)
    else:
        raise ConfigError(
            f"{key} is {type_of(value)}; expected a dict of connection parameters, an amqp:// or"
            " amqps:// URL, a pika Parameters object, or a list of these"
        )
    _check_what_pika_does_not(template, key)
    return Node(template)


def _embedded_node(url: str, key: str) -> Node:
    name = url[len(_EMBEDDED) :]
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", name):
        raise ConfigError(
            f"{key} is an embedded:// URL with something else than a name in it; expected embedded:// or"
            " embedded://name, with letters, digits, '_', '-' and '.'"
        )
    return EmbeddedNode(name, _from_mapping({"host": "127.0.0.1"}, key))


def _from_parameters(value: Parameters) -> Parameters:
    template = copy.copy(value)
    # In pika's objects None is "not set". The connect times have bounds of pika's own.
    if template.blocked_connection_timeout is None:
        template.blocked_connection_timeout = BOUNDS["blocked_connection_timeout"]
    if template.heartbeat is None:
        template.heartbeat = BOUNDS["heartbeat"]
    return template


def _from_mapping(value: Mapping[Any, Any], key: str) -> Parameters:
    check_keys(value, KEYS, key, _MEANT)
    template = ConnectionParameters()
    settings = {**BOUNDS, **value}
    credentials = _credentials(settings, key)
    if credentials is not None:
        template.credentials = credentials

    host = settings.get("host", template.host)
    if not isinstance(host, str):
        raise ConfigError(f"{key}['host'] is {type_of(host)}; expected the name or address of the broker")
    template.ssl_options = _ssl_options(settings.pop("ssl_options", None), host, key)
    default_port = template.DEFAULT_SSL_PORT if template.ssl_options else template.DEFAULT_PORT
    settings["port"] = _port(settings.get("port", default_port), key)

    for name, setting in settings.items():
        if isinstance(setting, bool):
            raise ConfigError(f"{key}[{name!r}] is {setting!r}; expected another type than bool")
        if isinstance(setting, (int, float)) and not is_finite(setting):
            raise ConfigError(f"{key}[{name!r}] is no finite number")
        try:
            setattr(template, name, copy.copy(setting))
        except (TypeError, ValueError) as exc:
            if name in _MAY_HOLD_SECRETS:
                # Not chained: pika's message repeats the value.
                problem = f"is {type_of(setting)}, which pika does not accept"
                raise ConfigError(f"{key}[{name!r}] {problem}") from None
            raise ConfigError(f"{key}[{name!r}]: {exc}{_json_hint(setting, name, key)}") from exc
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
                f"{key}['credentials'] is {type_of(credentials)}; expected"
                " pika.PlainCredentials or pika.credentials.ExternalCredentials"
            )
        return credentials
    if username is None and password is None:
        return None
    for name, part in (("username", username), ("password", password)):
        if not isinstance(part, str):
            what = "missing" if part is None else type_of(part)
            raise ConfigError(
                f"{key}[{name!r}] is {what}; 'username' and 'password' go together, both text"
                + _json_hint(part, name, key)
            )
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
        f"{key}['ssl_options'] is {type_of(value)}; expected an ssl.SSLContext, True for the"
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


def _check_host(host: str, key: str) -> None:
    # What was given is never shown: it may be a URL with a password, or a part of one.
    expected = f"expected a broker's name or address (a URL goes into {key} itself, and so does a list)"
    if ":" in host and "/" not in host and "@" not in host:
        _check_ipv6(host, f"{key}['host']")
    elif not re.fullmatch(r"[^\s@/:,?#\[\]]+", host):
        raise ConfigError(f"{key}['host'] is {'not a host' if host else 'empty'}; {expected}")


def _check_ipv6(host: str, where: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ConfigError(
            f"{where} is no IPv6 address; expected the host alone, with the port in 'port'"
        ) from None


def _from_url(url: str, key: str) -> Parameters:
    # No error here shows the URL, or chains one that might: a password with a bare '/' or ':' in it ends up
    # in urllib's and in pika's messages.
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ConfigError(f"{key} {_what_is_wrong_with(url)}")
    if parts["port"] is not None and not 0 < int(parts["port"] or 0) < 65536:
        raise ConfigError(f"{key} has no valid port; expected a number from 1 to 65535, as in {_URL_FORM}")
    if parts["user"] is not None and parts["password"] is None:
        raise ConfigError(f"{key} has a user name without a password; expected {_URL_FORM}")
    if parts["host"].startswith("["):
        _check_ipv6(parts["host"].strip("[]"), f"{key}: its host")
    options = parse_qsl(parts["query"] or "", keep_blank_values=True)
    check_keys((name for name, _ in options), _URL_OPTIONS, f"{key} (its query)")
    scheme = parts["scheme"].lower()
    for name, text in options:
        # One at a time, so that the error can name it.
        try:
            URLParameters(f"{scheme}://host/?{name}={quote(text, safe='')}")
        except Exception as exc:  # what a certificate or a Python literal can be wrong in
            raise ConfigError(f"{key}: pika rejects the option {name!r}{_why(exc, name)}") from None
    try:
        template = URLParameters(scheme + url[len(scheme) :])
    except Exception:
        raise ConfigError(f"{key} has an option twice, or cannot be read; expected {_URL_FORM}") from None
    for name in BOUNDS.keys() - {name for name, _ in options}:
        setattr(template, name, BOUNDS[name])
    return template


def _what_is_wrong_with(url: str) -> str:
    if not url:
        return f"is empty; expected {_URL_FORM}"
    if not re.match("amqps?://", url, re.IGNORECASE):
        return f"is not an amqp:// or amqps:// URL; expected {_URL_FORM}"
    if "," in url:
        return "cannot be read as one URL; a cluster is a list, with one URL for each node"
    return f"cannot be read; expected {_URL_FORM} ({_URL_HINT}, a '/' as %2f)"


def _why(exc: Exception, option: str) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f": {exc.strerror}"
    return "" if option in _MAY_HOLD_SECRETS else f": {exc}"


def _check_what_pika_does_not(template: Parameters, key: str) -> None:
    """What pika takes now, and fails on or cuts off while it connects; or shows, with a password in it."""
    _check_host(template.host, key)
    if "://" in template.virtual_host:
        raise ConfigError(f"{key}: 'virtual_host' is a URL; expected a name (a URL goes into {key} itself)")
    beats = template.heartbeat
    if isinstance(beats, int) and beats > 65535:
        raise ConfigError(f"{key}: 'heartbeat' is {beats}; expected 65535 seconds at the most")
    if not 0 < template.port < 65536:
        raise ConfigError(f"{key}: 'port' is {template.port}; expected a number from 1 to 65535")
    if not template.retry_delay >= 0:
        raise ConfigError(f"{key}: 'retry_delay' is {template.retry_delay}; expected seconds, 0 or more")
    for name, text in (("virtual_host", template.virtual_host), ("locale", template.locale)):
        # AMQP 0-9-1, section 4.2.5.3: a short string has a length of one octet.
        if len(text.encode(errors="replace")) > 255:
            raise ConfigError(f"{key}: {name!r} is longer than AMQP's 255 bytes")
    if isinstance(template.credentials, PlainCredentials):
        for name, secret in (
            ("username", template.credentials.username),
            ("password", template.credentials.password),
        ):
            # RFC 4616: NUL is what separates the two.
            if isinstance(secret, str) and "\0" in secret:
                raise ConfigError(f"{key}: {name!r} has a NUL character, which cannot be sent")
    options = template.tcp_options or {}
    check_keys(options, _TCP_OPTIONS, f"{key}['tcp_options']")
    for name, number in options.items():
        if not isinstance(number, int):
            raise ConfigError(f"{key}['tcp_options'][{name!r}] is {type_of(number)}; expected a whole number")
    for name, value in (template.client_properties or {}).items():
        try:
            pika_data.encode_table([], {name: value})
        except Exception:  # of many types, and with the value in its message
            raise ConfigError(
                f"{key}['client_properties'][{name!r}] cannot be sent; expected what AMQP has a type for:"
                " text, numbers, bool, None, datetime, and lists and dicts of these"
            ) from None


def check_keys(
    given: Iterable[Any], known: Iterable[str], key: str, meant: Mapping[str, str] | None = None
) -> None:
    """Refuse a key that does not exist, and name the nearest one that does."""
    known = tuple(known)
    for name in given:
        if name in known:
            continue
        raise ConfigError(f"{key} has no key {name!r}; {nearest(str(name), known, meant)}")


def nearest(name: str, known: Iterable[str], meant: Mapping[str, str] | None = None) -> str:
    """Advice for a name that does not exist."""
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    best = (meant or {}).get(name.lower()) or next(iter(near), None)
    return f"did you mean {best!r}?" if best else f"expected one of {', '.join(known)}"


def type_of(value: object) -> str:
    """What a value is, where the value itself is not to be shown: ``a str``, ``an int``."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_finite(value: object) -> bool:
    """Whether it is a number that a clock can count to."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _json_hint(value: object, name: str, key: str) -> str:
    # Flask reads an environment variable as JSON, and takes FLASK_ off its name.
    if isinstance(value, (int, float)) and not key.startswith("FLASK_"):
        return f" (an environment variable is read as JSON: FLASK_{key}__{name}='\"...\"')"
    return ""
