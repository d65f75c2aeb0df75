"""``v2v-serve``: jobs by HTTP."""

from __future__ import annotations

from typing import NoReturn

from v2v.apps.options import ServeOptions, missing, serve
from v2v.core.console import new_app, run_app, takes

app = new_app()


def main() -> NoReturn:
    """Entry point of ``v2v-serve``."""
    run_app(app)


@app.command()
@takes(ServeOptions)
def command(options: ServeOptions) -> None:
    """Take videos by HTTP and enhance them one after the other; /docs says how. Jobs survive a restart."""
    try:
        from v2v.apps.service import JOBS, make_service
    except ImportError as error:
        raise missing("serve", error) from error
    serve(options, lambda queue: make_service(queue, options.root), (JOBS,))
