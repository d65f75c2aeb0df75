"""``v2v-web``: a page in the browser, and the service behind it."""

from __future__ import annotations

from typing import NoReturn

from v2v.apps.options import ServeOptions, missing, serve
from v2v.core.console import new_app, run_app, takes

app = new_app()


def main() -> NoReturn:
    """Entry point of ``v2v-web``."""
    run_app(app)


@app.command()
@takes(ServeOptions)
def command(options: ServeOptions) -> None:
    """Open a page on which videos are enhanced; the jobs of v2v-serve are behind it. They survive a restart."""
    try:
        from v2v.apps.page import UPLOAD, add_page
        from v2v.apps.service import JOBS, make_service
    except ImportError as error:
        raise missing("web", error) from error
    serve(options, lambda queue: add_page(make_service(queue, options.root), queue), (JOBS, UPLOAD))
