"""``v2v-doctor``: look at everything, print a table, end with exit code 2 where something is wrong."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NoReturn

from v2v.core.abort import removed_on_abort
from v2v.core.console import Table, messages, new_app, results, run_app, takes
from v2v.core.errors import V2VError
from v2v.core.files import write_whole
from v2v.doctor.checks import Examination
from v2v.doctor.examine import run
from v2v.doctor.options import DoctorOptions
from v2v.doctor.report import rows, to_json, to_markdown, told
from v2v.engine.store import engines_root

app = new_app()

_STYLES = {"passed": "green", "failed": "red", "skipped": "dim"}


def main() -> NoReturn:
    """Run ``v2v-doctor``; :mod:`v2v.doctor.start` calls it."""
    # A process that is ended in the middle leaves semaphores behind, which Python removes and then warns of.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    run_app(app)


@app.command()
@takes(DoctorOptions)
def command(options: DoctorOptions) -> None:
    """Try everything that v2v needs on this machine, in under two minutes and without weights.

    Each check runs in a process of its own, so that a crash or a hang is a result like others. Exit code 2 says that
    something failed, and what.
    """
    options.check_files()
    options.backends()
    options.model_for("cuda")
    root = engines_root()  # where engines have room, graphs have it too; /tmp may be small
    root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".v2v-doctor-", dir=root) as name,
        removed_on_abort(Path(name)),
        messages.status("") as status,
    ):
        examination = Examination(
            options.time, Path(name), lambda check, step: status.update(f"{check}: {step}")
        )
        run(options, examination, Path(name))
    report(examination, options)


def report(examination: Examination, options: DoctorOptions) -> None:
    """Print the table and write the files.

    Raises:
        V2VError: a check failed; names it and its step.
    """
    table = Table("check", "result", "s", "")
    for column in (1, 3):
        table.columns[column].justify = "left"
    for row, outcome in zip(rows(examination.outcomes), examination.outcomes, strict=True):
        table.add_row(*row, style=_STYLES[outcome.state])
    results.print(table)
    for path, text in ((options.json, to_json), (options.markdown, to_markdown)):
        if path is not None:
            write_whole(path, text(examination.outcomes))
    if failed := examination.failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise V2VError(f"{failed[0].name}{more} failed at the step {told(failed[0])}")
