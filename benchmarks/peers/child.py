"""The process of a candidate: ``python -m benchmarks.peers.child MODULE OPTIONS``.

On standard input, one line of JSON for each run; on standard output, one for what came of it. While
connections are open, it may say ``{"ask": true}``, and waits for a line.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from importlib import metadata
from typing import Any

from benchmarks.peers.base import Case, NotOffered


def versions(names: list[str]) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}


def main() -> None:
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.ERROR)

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    def ask() -> None:
        say(ask=True)
        sys.stdin.readline()

    try:
        module = importlib.import_module(f"benchmarks.peers.{sys.argv[1]}")
        options = json.loads(sys.argv[2])
        peer = module.make(options, ask)
        say(versions=versions(module.PACKAGES))
    except Exception as exc:
        say(error=described(exc))
        return
    for line in iter(sys.stdin.readline, ""):
        told = json.loads(line)
        try:
            say(figures=peer.run(told["work"], Case(told["case"]), told["count"]))
        except NotOffered as exc:
            say(not_offered=str(exc))
        except Exception as exc:
            traceback.print_exc()
            say(error=described(exc))


def described(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"


if __name__ == "__main__":
    main()
