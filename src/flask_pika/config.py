"""``app.config`` to frozen settings, once, in ``init_app``; a bad value is named by its key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from .errors import ConfigError
from .nodes import Node
from .params import check_keys, is_finite, parse_nodes, type_of

DEFAULT_PREFIX = "FLASK_PIKA"
#: Seconds that a goodbye to the broker may take. A peer that does not answer is left without one.
GOODBYE = 1.0
#: The keys that are read, without the prefix.
_NAMES = {"PARAMS", "POOL_PARAMS", "PUBLISHER_PARAMS", "DECLARE"}
Declare = Literal["auto", "check", "never"]


class Setting(NamedTuple):
    """What may be said of one setting; the reference page is made from it, and so is the error."""

    meaning: str
    #: Of a number, and what ``meaning`` goes on from: ``seconds``, ``bytes``; empty for True or False.
    unit: str = ""
    #: The lowest value of a number.
    lowest: int = 0
    #: Whether it is a whole number.
    whole: bool = False

    @property
    def expected(self) -> str:
        """In words, for an error."""
        if not self.unit:
            return "True or False"
        return f"{'a whole number' if self.whole else 'a number of seconds'}, {self.lowest} or more"

    def takes(self, value: object) -> bool:
        """Whether it can be this value."""
        if not self.unit:
            return isinstance(value, bool)
        kinds = int if self.whole else (int, float)
        return isinstance(value, kinds) and is_finite(value) and value >= self.lowest


def _setting(default: Any, meaning: str, **about: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(meaning, **about)})


def about(declared: Field[Any]) -> Setting:
    """What is known of a field of :class:`PoolSettings` or :class:`PublisherSettings`."""
    known: Setting = declared.metadata["setting"]
    return known


@dataclass(frozen=True)
class PoolSettings:
    """How many channels there may be, for how long, and in which state they are lent.

    The names are SQLAlchemy's, except ``confirm_delivery``.
    """

    pool_size: int = _setting(
        5,
        "that are kept open, at the most; each is opened when first needed",
        unit="channels",
        lowest=1,
        whole=True,
    )
    max_overflow: int = _setting(
        0,
        "beyond `pool_size` that may be open at a time; closed at their return. -1: any number",
        unit="channels",
        lowest=-1,
        whole=True,
    )
    pool_timeout: float = _setting(
        30.0, "that a checkout may take, with waiting, name lookup, connecting and all", unit="seconds"
    )
    pool_recycle: float = _setting(
        -1,
        "of age after which a channel is closed and replaced at checkout. -1 or None: never",
        unit="seconds",
        lowest=-1,
    )
    pool_pre_ping: bool = _setting(
        True, "whether a channel is probed at checkout, so that one that died while idle is replaced"
    )
    confirm_delivery: bool = _setting(
        False,
        "whether channels come in confirm mode: `basic_publish` then returns when the broker has the message",
    )

    @property
    def limit(self) -> float:
        """How many channels may be open at one time."""
        return math.inf if self.max_overflow < 0 else self.pool_size + self.max_overflow


@dataclass(frozen=True)
class PublisherSettings:
    """How long a publish may take, and how much may be pending."""

    timeout: float = _setting(
        10.0,
        "that a publish may take, with waiting for room, connecting, sending, confirm and retries, where the"
        " call does not say",
        unit="seconds",
    )
    max_messages: int = _setting(
        10_000,
        "that may be pending: not sent, or not confirmed",
        unit="messages",
        lowest=1,
        whole=True,
    )
    max_bytes: int = _setting(
        64 * 2**20,
        "that these may have, with their properties. A single larger message passes alone",
        unit="bytes",
        lowest=1,
        whole=True,
    )
    drain_timeout: float = _setting(
        5.0, "that `close()` and the interpreter's end wait for what is pending", unit="seconds"
    )


#: Without pool parameters: every channel is opened for its borrower and closed at its return.
UNPOOLED = PoolSettings(pool_size=0, max_overflow=-1)


@dataclass(frozen=True)
class Settings:
    """All that an app's configuration says to one ``Pika`` object."""

    nodes: tuple[Node, ...]
    pool: PoolSettings
    publisher: PublisherSettings = PublisherSettings()
    #: What is done with registered exchanges and queues: declared, only looked for, or nothing.
    declare: Declare = "auto"


def read_settings(config: Mapping[str, Any], prefix: str) -> Settings:
    """Read ``<prefix>_PARAMS``, ``_POOL_PARAMS``, ``_PUBLISHER_PARAMS`` and ``_DECLARE``; ``config`` stays.

    :raises ConfigError: names the key, what was expected, and the nearest key that exists.
    """
    params_key, params = _look_up(config, prefix, "PARAMS")
    pool_key, pool_params = _look_up(config, prefix, "POOL_PARAMS")
    publisher_key, publisher_params = _look_up(config, prefix, "PUBLISHER_PARAMS")
    declare_key, declare = _look_up(config, prefix, "DECLARE")
    if declare not in (None, "auto", "check", "never"):
        raise ConfigError(f"{declare_key} is {declare!r}; expected 'auto', 'check' or 'never'")
    return Settings(
        nodes=parse_nodes(params, params_key),
        pool=_pool_settings(pool_params, pool_key),
        publisher=_publisher_settings(publisher_params, publisher_key),
        declare=declare or "auto",
    )


def _look_up(config: Mapping[str, Any], prefix: str, name: str) -> tuple[str, Any]:
    key = f"{prefix}_{name}"
    # app.config.from_prefixed_env() takes FLASK_ off the environment's FLASK_PIKA_PARAMS.
    from_env = key.removeprefix("FLASK_")
    for known in (key, from_env):
        if config.get(known) is not None:
            return known, config[known]
    if key not in config and from_env not in config:
        _check_for_typos(config, prefix, name)
    return key, None


def _check_for_typos(config: Mapping[str, Any], prefix: str, name: str) -> None:
    """An app that says FLASK_PIKA_PARMS would find itself talking to localhost."""
    for start in (f"{prefix}_", f"{prefix}_".removeprefix("FLASK_")):
        others = {str(key).removeprefix(start) for key in config if str(key).startswith(start)} - _NAMES
        near = difflib.get_close_matches(name, others, 1, 0.85)
        if near:
            raise ConfigError(f"{start}{near[0]} is not read; did you mean {start}{name}?")


def _pool_settings(value: object, key: str) -> PoolSettings:
    if value is None:
        return UNPOOLED
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{key} is {type_of(value)}; expected a dict such as"
            " {'pool_size': 8, 'pool_recycle': 600}, or None for no pool"
        )
    given = dict(value)
    if given.get("pool_recycle", -1) is None:
        given["pool_recycle"] = -1
    _check(given, PoolSettings, key)
    return PoolSettings(**given)


def _publisher_settings(value: object, key: str) -> PublisherSettings:
    if value is None:
        return PublisherSettings()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {type_of(value)}; expected a dict such as {{'timeout': 10}}")
    _check(value, PublisherSettings, key)
    return PublisherSettings(**value)


def _check(given: Mapping[str, Any], settings: type[PoolSettings | PublisherSettings], key: str) -> None:
    known = {one.name: about(one) for one in fields(settings)}
    check_keys(given, known, key)
    for name, value in given.items():
        if not known[name].takes(value):
            raise ConfigError(f"{key}[{name!r}] is {value!r}; expected {known[name].expected}")
