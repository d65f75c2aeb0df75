"""The process that reads damaged files of v2v's own kinds."""

import sys
from pathlib import Path

from tests.damage.data import KINDS
from tests.damage.process import serve

if __name__ == "__main__":
    kind = KINDS[sys.argv[1]]

    def read(number: int, path: Path) -> None:
        kind.read(path)

    serve(read)
