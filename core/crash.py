"""An unforeseen error becomes one sentence for the user and a log file with the traceback."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

import platformdirs

from v2v.core.version import __version__


def unforeseen(error: BaseException) -> str:
    """Write the traceback of ``error`` to a log file; returns one sentence that names the error and the file.

    The file lies in the user's folder for logs, or in the one for temporary files where that cannot be written.
    """
    kind = type(error).__name__
    description = f"{kind}: {error}" if str(error) else kind
    log = _write_log(error)
    location = f"all that is known of it is in {log}" if log else "no file could be written that tells more"
    return f"this should not have happened ({description}); {location}; please report it with that"


def _write_log(error: BaseException) -> Path | None:
    text = "\n".join(
        [
            time.strftime("%Y-%m-%d %H:%M:%S %z"),
            f"v2v {__version__}, Python {platform.python_version()}, {platform.platform()}",
            shlex.join(sys.argv),
            "",
            *traceback.format_exception(error),
        ]
    )
    for folder in (Path(platformdirs.user_log_dir("v2v")), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=time.strftime("v2v-%Y%m%d-%H%M%S-"), suffix=".log", dir=folder
            )
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return Path(name)
        except OSError:
            continue
    return None
