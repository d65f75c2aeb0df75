"""The jobs by HTTP: upload, follow, download, cancel, resume, delete."""

from __future__ import annotations

import asyncio
import html
import inspect
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from v2v.apps.job import OFFERED, OVER, Job
from v2v.apps.jobs import Conflict, JobQueue, NoSuchJob, Refused
from v2v.core.errors import UsageError, V2VError
from v2v.core.version import __version__
from v2v.runtime.options import RunOptions

JOBS = "/jobs"
_LONGEST_FIELD = 1 << 14  # bytes
_PAUSE = 0.25  # seconds between two looks at a job that somebody follows
_ALIVE = 15.0  # seconds after which a silent stream says that it is there
_STATUS = {NoSuchJob: 404, Conflict: 409, Refused: 507, UsageError: 422}
# A page that shows somebody's videos needs nothing but itself.
_ISOLATED = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "media-src data:; frame-ancestors 'self'"
)


class _BoundedForm(APIRoute):
    """Reads a form with few and short fields: what is no file is held in memory."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if request.method == "POST" and request.url.path == JOBS:
                await request.form(max_files=1, max_fields=len(OFFERED) + 2, max_part_size=_LONGEST_FIELD)
            return await handle(request)

        return bounded


def make_service(queue: JobQueue, root: Path | None = None) -> FastAPI:
    """The application; ``root`` is the folder of this machine whose videos may be named instead of uploaded."""
    app = FastAPI(
        title="v2v",
        version=__version__,
        summary="Enhances videos, one job after the other.",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.router.route_class = _BoundedForm
    app.state.queue, app.state.root = queue, None if root is None else root.resolve()
    app.add_exception_handler(V2VError, _tell)
    app.add_exception_handler(StarletteHTTPException, _tell_http)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.post(JOBS, status_code=201, tags=["jobs"])(create)
    app.get(JOBS, tags=["jobs"])(every)
    app.get(JOBS + "/{job_id}", tags=["jobs"])(one)
    app.get(JOBS + "/{job_id}/events", tags=["jobs"], response_class=StreamingResponse)(events)
    app.get(JOBS + "/{job_id}/result", tags=["jobs"], response_class=FileResponse)(result)
    app.get(JOBS + "/{job_id}/compare", tags=["jobs"], response_class=FileResponse)(compare)
    app.post(JOBS + "/{job_id}/cancel", tags=["jobs"])(cancel)
    app.post(JOBS + "/{job_id}/resume", tags=["jobs"])(resume)
    app.delete(JOBS + "/{job_id}", tags=["jobs"], status_code=204)(delete)
    app.get("/docs", include_in_schema=False, response_class=HTMLResponse)(manual)
    return app


def as_json(queue: JobQueue, job: Job) -> dict[str, Any]:
    """A job as the interface shows it."""
    left_out = ("source", "result", "starts", "progress", "size")
    shown = {key: value for key, value in msgspec.structs.asdict(job).items() if key not in left_out}
    ahead = queue.ahead_of(job.id) if job.state == "queued" else 0
    here = f"{JOBS}/{job.id}"
    links = {"result": f"{here}/result", "file_name": job.download_name} if job.state == "done" else {}
    return {**shown, "progress": msgspec.structs.asdict(job.progress), "ahead": ahead, **links}


def _options() -> Callable[..., dict[str, Any]]:
    """A dependency that takes each option of a job from the form, with the help of ``v2v-run``."""
    parameters = []
    fields, hints = RunOptions.__dataclass_fields__, get_type_hints(RunOptions, include_extras=True)
    for name, hint in OFFERED.items():
        told = hints[name].__metadata__[0].help
        annotation = Annotated[hint, Form(description=told)]  # type: ignore[valid-type]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=fields[name].default, annotation=annotation))

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value != fields[name].default}

    given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return given


def _queue(request: Request) -> JobQueue:
    queue: JobQueue = request.app.state.queue
    return queue


Queue = Annotated[JobQueue, Depends(_queue)]


def create(
    request: Request,
    queue: Queue,
    options: Annotated[dict[str, Any], Depends(_options())],
    file: Annotated[UploadFile | None, File(description="The video or the picture.")] = None,
    path: Annotated[
        str | None,
        Form(description="Instead of a file: its path on the server, inside the folder of --root."),
    ] = None,
    container: Annotated[str | None, Form(description="mp4, mkv or mov; default: as the source.")] = None,
) -> dict[str, Any]:
    """Put a job at the end of the queue: a multipart form with a file, or the path of one, and options of v2v-run."""
    if (file is None) == (not path):
        raise UsageError("give either a file or the path of one on the server")
    if file is None:
        source = _inside(request.app.state.root, path or "")
        job = queue.submit(source.name, options, source=source, container=container)
    else:
        opened = file.file

        def take(target: Path) -> None:
            with target.open("xb") as copy:
                shutil.copyfileobj(opened, copy, 1 << 20)

        name, size = file.filename or "video", file.size or 0
        job = queue.submit(name, options, take=take, size=size, container=container)
    return as_json(queue, job)


def every(queue: Queue, limit: int = 100) -> list[dict[str, Any]]:
    """The newest jobs, as many as ``limit``."""
    return [as_json(queue, job) for job in queue.jobs()[: max(limit, 0)]]


def one(job_id: str, queue: Queue) -> dict[str, Any]:
    """A job: queued, running, done, failed or cancelled, and how far it is."""
    return as_json(queue, queue.get(job_id))


async def events(job_id: str, queue: Queue) -> StreamingResponse:
    """A job as server-sent events: one at once, then one whenever it changes, until it is over."""
    queue.get(job_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(job_id, queue), media_type="text/event-stream", headers=headers)


async def _stream(job_id: str, queue: JobQueue) -> AsyncIterator[bytes]:
    last, silent = b"", 0.0
    while True:
        try:
            job = queue.get(job_id)
        except NoSuchJob:
            yield b"event: deleted\ndata: {}\n\n"
            return
        now = msgspec.json.encode(as_json(queue, job))
        if now != last:
            yield b"data: " + now + b"\n\n"
            last, silent = now, 0.0
        elif silent >= _ALIVE:
            yield b": still here\n\n"
            silent = 0.0
        if job.state in OVER:
            return
        await asyncio.sleep(_PAUSE)
        silent += _PAUSE


def result(job_id: str, queue: Queue, inline: bool = False) -> FileResponse:
    """The enhanced video; requests of ranges are answered. ``inline``: to be shown instead of saved."""
    job = queue.get(job_id)
    path = _finished(queue, job, "result")
    kind: Literal["inline", "attachment"] = "inline" if inline else "attachment"
    media_type = {".mp4": "video/mp4", ".mkv": "video/x-matroska", ".mov": "video/quicktime"}[path.suffix]
    return FileResponse(
        path, media_type=media_type, filename=job.download_name, content_disposition_type=kind
    )


def compare(job_id: str, queue: Queue) -> FileResponse:
    """A page with a slider between before and after, of a whole video."""
    path = _finished(queue, queue.get(job_id), "compare")
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": _ISOLATED})


def cancel(job_id: str, queue: Queue) -> dict[str, Any]:
    """End a job; what is finished of it is kept until it is deleted."""
    return as_json(queue, queue.cancel(job_id))


def resume(job_id: str, queue: Queue) -> dict[str, Any]:
    """Queue a job that failed or was cancelled again; it goes on with what is finished."""
    return as_json(queue, queue.resume(job_id))


def delete(job_id: str, queue: Queue) -> None:
    """Remove a job that is not running, its source and its result."""
    queue.delete(job_id)


def manual(request: Request) -> str:
    """A page for people about /openapi.json."""
    schema = request.app.openapi()
    parts = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            rows = [(p["name"], p.get("description", "")) for p in operation.get("parameters", ())]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                body = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                rows += [(name, facts.get("description", "")) for name, facts in body["properties"].items()]
            table = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(told)}" for name, told in rows)
            parts.append(
                f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(operation['description'])}</p>"
                f"<table>{table}</table>"
            )
    return _MANUAL.format(version=html.escape(__version__), parts="".join(parts))


_MANUAL = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>v2v: the service</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem }}
  h2 {{ font: 600 1.05rem ui-monospace, monospace; margin: 2rem 0 0; overflow-wrap: anywhere }}
  th {{ font: 600 .9rem ui-monospace, monospace; text-align: left; padding-right: 1rem; vertical-align: top }}
</style>
<h1>v2v {version}</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>.
Errors are JSON: <code>{{"error": "what is wrong"}}</code>.</p>
{parts}
</html>"""


def _inside(root: Path | None, text: str) -> Path:
    """The file that a path inside ``root`` means, links followed.

    Raises:
        UsageError: there is no such file there.
    """
    if root is None:
        raise UsageError("this service takes no paths, as it was started without --root; upload the file")
    try:
        found = (root / text).resolve()
    except (OSError, ValueError, RuntimeError):
        found = root.parent
    if not found.is_relative_to(root) or not found.is_file() or not os.access(found, os.R_OK):
        raise UsageError("path: there is no such file in the folder of --root")
    return found


def _finished(queue: JobQueue, job: Job, name: Literal["result", "compare"]) -> Path:
    path = queue.path_of(job, name)
    if job.state != "done":
        raise Conflict(f"{job.name} is {job.state}; there is no result")
    if not path.is_file():
        raise HTTPException(404, "this job has no such file")
    return path


async def _tell(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 422)
    return JSONResponse({"error": str(error)}, status)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)


async def _tell_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
    return JSONResponse({"error": told}, 422)
