"""The search for secrets finds them: in each form, wherever a piece of a file ends, and in what was told."""

from __future__ import annotations

import json
import logging
import urllib.parse
from pathlib import Path

import pytest

from tests.faults import searching
from tests.faults.searching import PASSWORD, Search

URL = f"amqp://lab:{urllib.parse.quote(PASSWORD, safe='')}@127.0.0.1"


@pytest.mark.parametrize("text", [PASSWORD, URL, json.dumps({"password": PASSWORD}), repr(f"{PASSWORD}\n")])
def test_it_is_found_in_a_file_and_in_a_text(text: str, tmp_path: Path) -> None:
    Search(tmp_path).check(("nothing",))
    with pytest.raises(AssertionError, match="the password is in"):
        Search(tmp_path).check((f"so it says {text}",))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "log").write_text(f"so it says {text}")
    with pytest.raises(AssertionError, match="some/log"):
        Search(tmp_path).check()


def test_it_is_found_across_pieces_and_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_CHUNK", 5)
    log, search = tmp_path / "log", Search(tmp_path)
    log.write_text(f"a line\n{PASSWORD[:6]}")
    search.check()
    with log.open("a") as file:
        file.write(f"{PASSWORD[6:]}\n")
    with pytest.raises(AssertionError, match="log"):
        search.check()


def test_what_is_logged_here_is_searched(records: Path) -> None:
    """At every level, and with the traceback, by the package and by pika; none of it is kept by pytest."""
    try:
        raise ValueError("in a traceback")
    except ValueError:
        logging.getLogger("flask_pika.consumer").debug("a word of the package's", exc_info=True)
    logging.getLogger("pika.connection").info("a word of pika's")
    written = (records / "log").read_text()
    assert all(one in written for one in ("a word of the package's", "in a traceback", "a word of pika's"))


def test_no_record_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flask_pika.consumer").error("a record")
    assert not caplog.records
