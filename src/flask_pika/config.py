"""``app.config`` to frozen settings, once, in ``init_app``; a bad value is named by its key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from .errors import ConfigError
from .nodes import Node
from .params import check_keys, is_finite, parse_nodes, type_of

DEFAULT_PREFIX = "FLASK_PIKA"
#: Seconds that a goodbye to the broker may take. A peer that does not answer is left without one.
GOODBYE = 1.0
_NAMES = {"PARAMS", "POOL_PARAMS", "PUBLISHER_PARAMS", "DECLARE"}
Declare = Literal["auto", "check", "never"]


@dataclass(frozen=True)
class PoolSettings:
    """How many channels there may be, for how long, and in which state they are lent.

    The names are SQLAlchemy's, except ``confirm_delivery``.
    """

    #: Channels that are kept open, at the most; each is opened when first needed.
    pool_size: int = 5
    #: Channels beyond ``pool_size`` that may be open at a time; closed at return. -1: any number.
    max_overflow: int = 0
    #: Seconds that a checkout may take, with waiting, connecting and all.
    pool_timeout: float = 30.0
    #: Seconds of age after which a channel is closed and replaced at checkout. -1: never.
    pool_recycle: float = -1
    #: Whether a channel is probed at checkout, so that one that died while idle is replaced.
    pool_pre_ping: bool = True
    #: Whether channels come in confirm mode: ``basic_publish`` returns when the broker has the message.
    confirm_delivery: bool = False

    @property
    def limit(self) -> float:
        """How many channels may be open at one time."""
        return math.inf if self.max_overflow < 0 else self.pool_size + self.max_overflow


@dataclass(frozen=True)
class PublisherSettings:
    """How long a publish may take, and how much may be pending."""

    #: Seconds that a publish may take, with waiting for room, connecting, sending, confirm and retries.
    timeout: float = 10.0
    #: Messages that may be pending: not sent, or not confirmed.
    max_messages: int = 10_000
    #: And their bytes. A single message may be larger.
    max_bytes: int = 64 * 2**20
    #: Seconds that close() and the interpreter's exit wait for what is pending.
    drain_timeout: float = 5.0


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
    check_keys(value, (field.name for field in fields(PoolSettings)), key)
    given = dict(value)
    if given.get("pool_recycle", -1) is None:
        given["pool_recycle"] = -1
    for name, setting in given.items():
        _check(name, setting, key)
    return PoolSettings(**given)


def _publisher_settings(value: object, key: str) -> PublisherSettings:
    if value is None:
        return PublisherSettings()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {type_of(value)}; expected a dict such as {{'timeout': 10}}")
    check_keys(value, [field.name for field in fields(PublisherSettings)], key)
    for name, setting in value.items():
        _check(name, setting, key)
    return PublisherSettings(**value)


_LOWEST = {"pool_size": 1, "max_overflow": -1, "pool_timeout": 0, "pool_recycle": -1}
_LOWEST |= {"timeout": 0, "max_messages": 1, "max_bytes": 1, "drain_timeout": 0}
_WHOLE = {"pool_size", "max_overflow", "max_messages", "max_bytes"}


def _check(name: str, setting: object, key: str) -> None:
    if name in _LOWEST:
        kinds = int if name in _WHOLE else (int, float)
        what = "a whole number" if name in _WHOLE else "a number of seconds"
        good = isinstance(setting, kinds) and is_finite(setting) and setting >= _LOWEST[name]
        expected = f"{what}, {_LOWEST[name]} or more"
    else:
        good, expected = isinstance(setting, bool), "True or False"
    if not good:
        raise ConfigError(f"{key}[{name!r}] is {setting!r}; expected {expected}")
