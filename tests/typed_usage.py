"""What a user writes, for the type checkers alone: mypy strict and basedpyright read it, nothing runs it."""

from __future__ import annotations

from flask import Flask
from typing_extensions import assert_type

from flask_pika import Pika, PooledChannel, Stats


def use(app: Flask) -> None:
    fpika = Pika(app, config_prefix="AUDIT_PIKA")
    fpika.init_app(app)
    assert_type(fpika.channel(), PooledChannel)
    assert_type(fpika.channel(timeout=2.5), PooledChannel)
    with fpika.channel() as ch:
        assert_type(ch, PooledChannel)
        # To a type checker it is pika's channel.
        ch.basic_publish(exchange="exchange", routing_key="routing_key", body=b"message")
        assert_type(ch.is_open, bool)
    fpika.return_channel(ch)
    fpika.return_broken_channel(ch)
    assert_type(fpika.stats(), Stats)
    assert_type(fpika.stats().in_use, int)
    fpika.close()
