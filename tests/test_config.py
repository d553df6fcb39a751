"""What app.config may say, and what is said when it is wrong."""

from __future__ import annotations

import copy
import json
import ssl
import threading
from typing import Any

import pika
import pytest
from flask import Flask

from flask_pika import ConfigError, FlaskPikaError, Pika
from flask_pika.config import read_settings
from flask_pika.nodes import Node
from flask_pika.params import parse_nodes

SECRET = "s3cret-pässword"


def the_node(value: object) -> Node:
    (node,) = parse_nodes(value, "FLASK_PIKA_PARAMS")
    return node


def parameters(value: object, timeout: float = 60.0) -> pika.connection.Parameters:
    return the_node(value).parameters(address="10.0.0.1", connection_name="me", timeout=timeout)


def error_of(value: object, pool: object = None) -> str:
    app = Flask(__name__)
    app.config.update(FLASK_PIKA_PARAMS=value, FLASK_PIKA_POOL_PARAMS=pool)
    with pytest.raises(ConfigError) as caught:
        Pika(app)
    assert isinstance(caught.value, FlaskPikaError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_the_original_dict_is_understood_to_the_letter() -> None:
    node = the_node(
        {
            "host": "amqp.server.com",
            "username": "username",
            "password": "password",
            "port": 5673,
            "virtual_host": "vhost",
        }
    )
    assert str(node) == "amqp://amqp.server.com:5673/vhost"
    fresh = node.parameters(address="10.0.0.1", connection_name="me", timeout=60)
    assert (fresh.credentials.username, fresh.credentials.password) == ("username", "password")  # type: ignore[union-attr]
    assert fresh.host == "10.0.0.1"
    assert fresh.port == 5673
    assert fresh.virtual_host == "vhost"


def test_absent_parameters_are_pikas_own_default() -> None:
    settings = read_settings({}, "FLASK_PIKA")
    assert [str(node) for node in settings.nodes] == ["amqp://localhost:5672/%2F"]
    assert parameters(None).credentials == pika.ConnectionParameters().credentials


@pytest.mark.parametrize(
    "value",
    [{}, None, "amqp://h", pika.ConnectionParameters(), pika.URLParameters("amqp://h")],
    ids=["dict", "absent", "url", "object", "url object"],
)
def test_whatever_form_it_has_blocked_and_silent_brokers_are_bounded(value: object) -> None:
    fresh = parameters(value)
    assert fresh.blocked_connection_timeout == 20
    assert fresh.heartbeat == 8
    assert fresh.socket_timeout is not None
    assert fresh.stack_timeout is not None


@pytest.mark.parametrize(
    "value",
    [
        {"blocked_connection_timeout": 3, "heartbeat": 7, "socket_timeout": 1, "stack_timeout": 2},
        "amqp://h/?blocked_connection_timeout=3&heartbeat=7&socket_timeout=1&stack_timeout=2",
        pika.ConnectionParameters(
            blocked_connection_timeout=3, heartbeat=7, socket_timeout=1, stack_timeout=2
        ),
    ],
    ids=["dict", "url", "object"],
)
def test_each_bound_can_be_set_by_the_user(value: object) -> None:
    fresh = parameters(value)
    bounds = (fresh.blocked_connection_timeout, fresh.heartbeat, fresh.socket_timeout, fresh.stack_timeout)
    assert bounds == (3, 7, 1, 2)


def test_a_bound_can_be_taken_away() -> None:
    fresh = parameters({"blocked_connection_timeout": None, "heartbeat": 0, "stack_timeout": None}, 5)
    assert fresh.blocked_connection_timeout is None
    assert fresh.heartbeat == 0
    assert fresh.stack_timeout == 5, "the caller's deadline holds all the same"


def test_no_connect_outlives_its_callers_deadline() -> None:
    fresh = parameters({}, timeout=0.25)
    assert fresh.stack_timeout == 0.25
    assert fresh.socket_timeout == 0.25


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_url_with_pikas_query_options(scheme: str) -> None:
    node = the_node(f"{scheme}://us%2Fer:p%40ss@host:5999/v%2Fhost?heartbeat=9&channel_max=10")
    assert str(node) == f"{scheme}://host:5999/v%2Fhost"
    fresh = node.parameters(address="10.0.0.1", connection_name="me", timeout=60)
    assert (fresh.credentials.username, fresh.credentials.password) == ("us/er", "p@ss")  # type: ignore[union-attr]
    assert fresh.channel_max == 10
    assert (fresh.ssl_options is not None) == (scheme == "amqps")


def test_a_list_is_one_node_each_in_any_form() -> None:
    nodes = parse_nodes([{"host": "a"}, "amqp://b", pika.ConnectionParameters("c")], "KEY")
    assert [node.host for node in nodes] == ["a", "b", "c"]


@pytest.mark.parametrize("given", [True, ssl.create_default_context(), "pika"])
def test_tls_verifies_the_hosts_name_though_an_address_is_dialled(given: Any) -> None:
    options = pika.SSLOptions(ssl.create_default_context()) if given == "pika" else given
    node = the_node({"host": "rabbit.example", "ssl_options": options})
    assert str(node) == "amqps://rabbit.example:5671/%2F"
    fresh = node.parameters(address="10.0.0.1", connection_name="me", timeout=1)
    assert fresh.ssl_options is not None
    assert fresh.ssl_options.server_hostname == "rabbit.example"


def test_every_connect_has_parameters_of_its_own() -> None:
    # pika sets ssl_options to None on what it is given, while it connects: two threads must not share it.
    node = the_node({"ssl_options": True})
    first = node.parameters(address="h", connection_name="me", timeout=1)
    first.ssl_options = None
    assert node.parameters(address="h", connection_name="me", timeout=1).ssl_options is not None


def test_the_apps_configuration_is_never_changed() -> None:
    value = {"username": "u", "password": "p", "client_properties": {"a": 1}, "ssl_options": False}
    parameters_object = pika.ConnectionParameters("h")
    app = Flask(__name__)
    app.config.update(
        FLASK_PIKA_PARAMS=[value, parameters_object], FLASK_PIKA_POOL_PARAMS={"pool_recycle": None}
    )
    before = copy.deepcopy(dict(app.config))
    fpika = Pika(app)
    assert dict(app.config) == before
    assert parameters_object.heartbeat is None
    assert fpika.stats().size == 5


def test_the_connections_name_can_be_the_users() -> None:
    assert parameters({}).client_properties == {"connection_name": "me"}
    own = {"client_properties": {"connection_name": "mine", "x": 1}}
    assert parameters(own).client_properties == {"connection_name": "mine", "x": 1}


@pytest.mark.parametrize("text", ['{"host": "from-env", "port": 5999}', "amqp://from-env:5999"])
def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FLASK_PIKA_PARAMS", text)
    monkeypatch.setenv("FLASK_PIKA_POOL_PARAMS__pool_size", "3")
    monkeypatch.setenv("FLASK_AUDIT_PIKA_PARAMS", json.dumps({"host": "audit"}))
    app = Flask(__name__)
    app.config.from_prefixed_env()
    assert "from-env:5999" in repr(Pika(app))
    assert "audit" in repr(Pika(app, config_prefix="AUDIT_PIKA"))
    assert Pika(app, config_prefix="FLASK_AUDIT_PIKA")


def test_a_number_in_the_environment_where_text_belongs_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_PIKA_PARAMS__username", "u")
    monkeypatch.setenv("FLASK_PIKA_PARAMS__password", "12345")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    with pytest.raises(ConfigError, match=r"an int; .* FLASK_PIKA_PARAMS__password='\"...\"'"):
        Pika(app)


def test_whitespace_around_a_url_is_no_part_of_it() -> None:
    assert str(the_node(" AMQP://user:pass@host/v\n")) == "amqp://host:5672/v"


@pytest.mark.parametrize("typo", ["FLASK_PIKA_PARAM", "PIKA_PARMS", "FLASK_PIKA_POOLPARAMS"])
def test_a_key_that_is_nearly_right_is_named(typo: str) -> None:
    app = Flask(__name__)
    app.config[typo] = {}
    with pytest.raises(ConfigError, match=f"{typo} is not read; did you mean"):
        Pika(app)


def test_the_keys_of_another_object_are_no_typos() -> None:
    app = Flask(__name__)
    app.config.update(FLASK_PIKA_AUDIT_PARAMS={"host": "audit"}, FLASK_PIKA_AUDIT_POOL_PARAMS={})
    assert "localhost" in repr(Pika(app))
    assert "audit" in repr(Pika(app, config_prefix="FLASK_PIKA_AUDIT"))


def test_a_key_that_says_none_leaves_the_word_to_the_environment() -> None:
    config = {"FLASK_PIKA_PARAMS": None, "PIKA_PARAMS": "amqp://env"}
    assert read_settings(config, "FLASK_PIKA").nodes[0].host == "env"


def test_the_config_file_wins_over_the_environment() -> None:
    config = {"FLASK_PIKA_PARAMS": "amqp://file", "PIKA_PARAMS": "amqp://env"}
    assert read_settings(config, "FLASK_PIKA").nodes[0].host == "file"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"hots": "h"}, ["FLASK_PIKA_PARAMS", "'hots'", "did you mean 'host'"]),
        ({"usrname": "h"}, ["'usrname'", "did you mean 'username'"]),
        ({"zzzzzz": 1}, ["'zzzzzz'", "expected one of", "virtual_host"]),
        ({"host": ""}, ["FLASK_PIKA_PARAMS['host']", "name or address"]),
        ({"host": "amqp://h"}, ["FLASK_PIKA_PARAMS['host']", "a URL goes into FLASK_PIKA_PARAMS"]),
        ({"host": 5}, ["FLASK_PIKA_PARAMS['host']"]),
        ({"host": "h:5672"}, ["FLASK_PIKA_PARAMS", "host", "'port'"]),
        ({"port": "amqp"}, ["FLASK_PIKA_PARAMS['port']", "1 to 65535"]),
        ({"port": 70000}, ["FLASK_PIKA_PARAMS['port']", "1 to 65535"]),
        ({"port": True}, ["FLASK_PIKA_PARAMS['port']"]),
        ({"username": "u"}, ["'password'", "missing"]),
        ({"password": SECRET}, ["'username'", "missing"]),
        ({"username": "u", "password": 5}, ["'password'", "int"]),
        ({"credentials": ("u", SECRET)}, ["'credentials'", "tuple", "PlainCredentials"]),
        (
            {"credentials": pika.PlainCredentials("u", SECRET), "username": "u"},
            ["'credentials'", "one or the other"],
        ),
        ({"heartbeat": -1}, ["'heartbeat'", "-1"]),
        ({"heartbeat": 1.5}, ["'heartbeat'", "1.5"]),
        ({"heartbeat": True}, ["'heartbeat'", "bool"]),
        ({"socket_timeout": 0}, ["'socket_timeout'"]),
        ({"socket_timeout": float("nan")}, ["'socket_timeout'", "finite"]),
        ({"blocked_connection_timeout": "x"}, ["'blocked_connection_timeout'", "'x'"]),
        ({"ssl_options": {"ca_certs": "x"}}, ["'ssl_options'", "dict", "SSLContext"]),
        ({"client_properties": 5}, ["'client_properties'", "int"]),
        ({"frame_max": 1}, ["'frame_max'"]),
        ([], ["FLASK_PIKA_PARAMS", "empty list"]),
        ([{"host": "a"}, {"prt": 1}], ["FLASK_PIKA_PARAMS[1]", "'prt'", "'port'"]),
        ([["amqp://h"]], ["FLASK_PIKA_PARAMS[0]", "list"]),
        (5, ["FLASK_PIKA_PARAMS", "int", "amqp://"]),
        (b"amqp://h", ["FLASK_PIKA_PARAMS", "bytes"]),
        ("http://h", ["FLASK_PIKA_PARAMS", "amqp://"]),
        ("", ["FLASK_PIKA_PARAMS", "amqp://"]),
        ("rabbit.example", ["FLASK_PIKA_PARAMS", "amqp://"]),
        (f"amqp://user:{SECRET}/x@host/v", ["FLASK_PIKA_PARAMS", "%-encoded"]),
        (f"amqp://user:{SECRET}@host:99999", ["FLASK_PIKA_PARAMS", "port"]),
        (f"amqp://user:{SECRET}@host:0", ["FLASK_PIKA_PARAMS", "port"]),
        (f"amqp://user:{SECRET}@x@host/v", ["FLASK_PIKA_PARAMS", "%-encoded"]),
        (f"amqp:/user:{SECRET}@host", ["FLASK_PIKA_PARAMS", "not an amqp://"]),
        (f"amqp:user:{SECRET}@host", ["FLASK_PIKA_PARAMS", "not an amqp://"]),
        (f"user:{SECRET}@host", ["FLASK_PIKA_PARAMS", "not an amqp://"]),
        (f"amqp://user:{SECRET}@[::1/v", ["FLASK_PIKA_PARAMS", "cannot be read"]),
        (f"amqp://user:{SECRET}@[x]/v", ["FLASK_PIKA_PARAMS", "IPv6"]),
        (f"amqp://user:{SECRET}@a,amqp://user:{SECRET}@b", ["FLASK_PIKA_PARAMS", "a cluster is a list"]),
        (f"amqp://user:{SECRET}@a:5672,b:5672/v", ["FLASK_PIKA_PARAMS", "a cluster is a list"]),
        (f"amqp://user:{SECRET} x@host", ["FLASK_PIKA_PARAMS", "cannot be read"]),
        ("amqps://host/?ssl_options={'ca_certs':'/no/such/file'}", ["'ssl_options'", "No such file"]),
        ({"host": f"amqp://user:{SECRET}@host"}, ["['host']", "a URL goes into"]),
        (pika.ConnectionParameters(f"amqp://user:{SECRET}@host"), ["['host']", "a URL goes into"]),
        (pika.ConnectionParameters(""), ["['host']", "empty"]),
        ({"virtual_host": f"amqp://user:{SECRET}@host"}, ["'virtual_host'", "a URL goes into"]),
        (pika.ConnectionParameters(virtual_host=f"amqp://user:{SECRET}@host"), ["'virtual_host'"]),
        (f"amqp://host/amqp%3A%2F%2Fuser%3A{SECRET}%40host", ["'virtual_host'"]),
        ({"host": f"user:{SECRET}@host"}, ["['host']"]),
        ({"host": f"{SECRET}@host"}, ["['host']"]),
        ({"host": "a,b"}, ["['host']", "list"]),
        ({"host": "a b"}, ["['host']"]),
        ({"host": "[::1]"}, ["['host']"]),
        ({"vhost": "/"}, ["'vhost'", "did you mean 'virtual_host'"]),
        ({"ssl": True}, ["'ssl'", "did you mean 'ssl_options'"]),
        ({"user": "u", "pass": SECRET}, ["'user'", "did you mean 'username'"]),
        ({"username": "u", "password": f"{SECRET}\0"}, ["'password'", "NUL"]),
        ({"heartbeat": 65536}, ["'heartbeat'", "65535"]),
        ({"heartbeat": 10**400}, ["'heartbeat'", "finite"]),
        ({"virtual_host": "v" * 256}, ["'virtual_host'", "255"]),
        ({"locale": "v" * 256}, ["'locale'", "255"]),
        ({"retry_delay": -1}, ["'retry_delay'", "0 or more"]),
        ({"tcp_options": {"TCP_KEEPIDEL": 1}}, ["'TCP_KEEPIDEL'", "'TCP_KEEPIDLE'"]),
        ({"tcp_options": {"TCP_KEEPIDLE": "1"}}, ["'TCP_KEEPIDLE'", "a str"]),
        ({"client_properties": {"x": {SECRET}}}, ["'client_properties'", "'x'", "cannot be sent"]),
        (pika.ConnectionParameters(port=70000), ["'port'", "70000"]),
        (f"amqp://user:{SECRET}@host/a/b", ["FLASK_PIKA_PARAMS", "%2f"]),
        (f"amqp://user:123/{SECRET}@host", ["FLASK_PIKA_PARAMS", "%-encoded"]),
        (f"amqp://user:123?{SECRET}@host", ["FLASK_PIKA_PARAMS", "%-encoded"]),
        ("amqp://user@host", ["FLASK_PIKA_PARAMS", "password"]),
        (f"amqp://user:{SECRET}@host/?hartbeat=5", ["'hartbeat'", "'heartbeat'"]),
        (f"amqp://user:{SECRET}@host/?heartbeat=x", ["'heartbeat'", "x"]),
        (f"amqp://user:{SECRET}@host/?heartbeat=1&heartbeat=2", ["FLASK_PIKA_PARAMS", "twice"]),
        (f"amqps://host/?ssl_options={{'password': '{SECRET}', 1}}", ["'ssl_options'"]),
        (f"amqp://host/?client_properties='{SECRET}'", ["'client_properties'"]),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_is_shown(value: object, said: list[str]) -> None:
    message = error_of(value)
    for part in said:
        assert part in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "url", [f"amqp://user:{SECRET}/x@host/v", f"amqps://host/?ssl_options={{'password': '{SECRET}', 1}}"]
)
def test_no_secret_is_in_the_chain_of_an_error_about_a_url(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_nodes(url, "KEY")
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        assert error.__suppress_context__ or error.__context__ is None
        error = error.__cause__


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"pool_siez": 1}, ["FLASK_PIKA_POOL_PARAMS", "'pool_siez'", "'pool_size'"]),
        ({"pool_size": 0}, ["'pool_size'", "1 or more"]),
        ({"pool_size": "8"}, ["'pool_size'", "'8'"]),
        ({"pool_size": True}, ["'pool_size'"]),
        ({"pool_size": 1.5}, ["'pool_size'", "whole"]),
        ({"max_overflow": -2}, ["'max_overflow'", "-1 or more"]),
        ({"pool_timeout": -1}, ["'pool_timeout'", "0 or more"]),
        ({"pool_timeout": None}, ["'pool_timeout'", "seconds"]),
        ({"pool_timeout": float("inf")}, ["'pool_timeout'"]),
        ({"pool_timeout": 10**400}, ["'pool_timeout'"]),
        ({"pool_recycle": "10"}, ["'pool_recycle'"]),
        ({"pool_pre_ping": 1}, ["'pool_pre_ping'", "True or False"]),
        ({"confirm_delivery": "yes"}, ["'confirm_delivery'", "True or False"]),
        (8, ["FLASK_PIKA_POOL_PARAMS", "int", "dict"]),
    ],
)
def test_wrong_pool_parameters_are_named(pool: object, said: list[str]) -> None:
    message = error_of({}, pool)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("publisher", "said"),
    [
        ({"timeot": 1}, ["FLASK_PIKA_PUBLISHER_PARAMS", "'timeot'", "'timeout'"]),
        ({"timeout": -1}, ["'timeout'", "0 or more"]),
        ({"timeout": None}, ["'timeout'", "seconds"]),
        ({"max_messages": 0}, ["'max_messages'", "1 or more"]),
        ({"max_messages": 1.5}, ["'max_messages'", "whole"]),
        ({"max_bytes": "1"}, ["'max_bytes'", "'1'"]),
        ({"drain_timeout": float("nan")}, ["'drain_timeout'"]),
        (8, ["FLASK_PIKA_PUBLISHER_PARAMS", "int", "dict"]),
    ],
)
def test_wrong_publisher_parameters_are_named(publisher: object, said: list[str]) -> None:
    app = Flask(__name__)
    app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = publisher
    with pytest.raises(ConfigError) as caught:
        Pika(app)
    for part in said:
        assert part in str(caught.value)


def test_the_publishers_defaults_and_the_environments_word() -> None:
    default = read_settings({}, "FLASK_PIKA").publisher
    assert (default.timeout, default.max_messages) == (10, 10_000)
    assert (default.max_bytes, default.drain_timeout) == (64 * 2**20, 5)
    assert read_settings({"PIKA_PUBLISHER_PARAMS": {"timeout": 3}}, "FLASK_PIKA").publisher.timeout == 3


def test_the_pools_defaults_are_sqlalchemys() -> None:
    pool = read_settings({"FLASK_PIKA_POOL_PARAMS": {}}, "FLASK_PIKA").pool
    assert (pool.pool_size, pool.max_overflow, pool.pool_timeout, pool.pool_recycle) == (5, 0, 30, -1)
    assert (pool.pool_pre_ping, pool.confirm_delivery, pool.limit) == (True, False, 5)


def test_no_secret_is_in_any_repr() -> None:
    app = Flask(__name__)
    app.config["FLASK_PIKA_PARAMS"] = {"username": "u", "password": SECRET}
    fpika = Pika(app)
    settings = read_settings(app.config, "FLASK_PIKA")
    shown = [repr(fpika), repr(settings), repr(settings.nodes[0]), repr(fpika.stats()), str(settings)]
    assert all(SECRET not in text for text in shown)


def test_nodes_can_be_read_by_many_threads() -> None:
    node = the_node({"ssl_options": True})
    lost = []

    def read() -> None:
        for _ in range(200):
            fresh = node.parameters(address="h", connection_name="me", timeout=1)
            saved = fresh.ssl_options
            fresh.ssl_options = None  # as pika does
            if saved is None:
                lost.append(1)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
