"""Build the sdist, and the wheel from it: ``python -m tools.dist DIRECTORY``.

From the sdist, not from the checkout: what somebody else makes of the sdist is this wheel then, and it has
nothing that only a checkout has. Needs hatchling in this environment, and nothing from elsewhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).parent.parent


class Dist(NamedTuple):
    """What is handed on."""

    sdist: Path
    wheel: Path


def build(target: str, source: Path, directory: Path) -> Path:
    """Build ``sdist`` or ``wheel`` from a source tree, into a directory."""
    before = set(directory.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"hatchling did not build the {target}:\n{done.stdout}")
    (built,) = set(directory.iterdir()) - before
    return built


def unpack(sdist: Path, directory: Path) -> Path:
    """The source tree in an sdist."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10 and 3.11
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(directory)
    return directory / sdist.name.removesuffix(".tar.gz")


def make(directory: Path) -> Dist:
    """Build both into a directory that is empty."""
    with tempfile.TemporaryDirectory() as place:
        sdist = build("sdist", _ROOT, directory)
        wheel = build("wheel", unpack(sdist, Path(place)), directory)
    return Dist(sdist, wheel)


def main() -> None:
    directory = Path(sys.argv[1])
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier version, for one
    directory.mkdir()
    for one in make(directory.absolute()):
        print(directory / one.name)


if __name__ == "__main__":
    main()
