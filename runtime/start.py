"""The entry point of ``v2v-run``: it installs the signal handlers before it imports anything that takes time."""

from __future__ import annotations

import sys
from typing import NoReturn

from v2v.core.abort import start
from v2v.runtime import supervisor


def main() -> NoReturn:
    """Entry point of ``v2v-run``."""
    if supervisor.is_wanted(sys.argv[1:]):
        sys.exit(supervisor.supervise([sys.executable, "-m", "v2v.runtime.start", *sys.argv[1:]]))
    supervisor.end_with_supervisor()
    start("v2v.runtime.cli")


if __name__ == "__main__":
    sys.argv[0] = "v2v-run"
    main()
