"""Print the newest Python that this machine has: ``python -m tools.newest_python 3.13``.

The documentation is built on one Python alone, and Sphinx wants a new one. Ends with 1 where there is none of
that version or newer. Needs nothing but the standard library.
"""

from __future__ import annotations

import sys

from tools.test_all import find_pythons


def main() -> int:
    wanted = sys.argv[1]
    found = find_pythons()
    newest = max(found, key=_number, default="")
    if not newest or _number(newest) < _number(wanted):
        has = f"the newest one here is {newest}" if newest else "there is none here"
        print(f"This needs Python {wanted} or newer, and {has}: install one and try again", file=sys.stderr)
        return 1
    print(found[newest])
    return 0


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    sys.exit(main())
