"""The options that the service and the page share, and how both are started."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import quote

import platformdirs
import typer

from v2v.apps.jobs import JobQueue, Limits
from v2v.core.console import messages, one_of
from v2v.core.errors import UsageError, V2VError
from v2v.device.gpus import cuda_devices
from v2v.engine.choose import named_device
from v2v.runtime.diffusion.loaded import Memory


@dataclass(frozen=True)
class ServeOptions:
    """The command lines of ``v2v-serve`` and ``v2v-web``."""

    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's, and a token is asked for."),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860
    token: Annotated[
        str | None,
        typer.Option(
            envvar="V2V_TOKEN",
            help="What whoever asks must know. Where others can reach this machine, one is made if none is given.",
        ),
    ] = None
    folder: Annotated[
        Path | None,
        typer.Option(help="Where jobs and their results are kept; default: the user's data folder."),
    ] = None
    root: Annotated[
        Path | None, typer.Option(help="Folder whose videos may be named by path instead of uploaded.")
    ] = None
    max_upload: Annotated[float, typer.Option(min=0.001, help="GiB that a source may have.")] = 4.0
    disk: Annotated[
        float, typer.Option(min=0.01, help="GiB that all jobs may have; the oldest that are over go first.")
    ] = 100.0
    max_waiting: Annotated[int, typer.Option(min=1, help="Jobs that may wait.")] = 100
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time; default: one for each GPU, one on a CPU.")
    ] = None
    engines: Annotated[
        str | None,
        typer.Option(help="Engine set of all jobs: a folder or a name in the store; default: the best."),
    ] = None
    engines_first: Annotated[
        str | None, typer.Option(help="Engine set that makes films of pictures; default: the best.")
    ] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, or cuda:1 for the second GPU.")] = None
    memory: Annotated[str, typer.Option(help="low: never hold all engines in memory at once.")] = "high"

    @contextlib.contextmanager
    def queue(self) -> Iterator[JobQueue]:
        """Open the queue; what is uploaded waits on the same disk.

        Raises:
            UsageError: an option cannot be read, or the folder not be used.
        """
        if self.token is not None and len(self.token) < 8:
            raise UsageError("--token: a token of less than 8 characters is guessed soon; give a longer one")
        if self.root is not None and not self.root.is_dir():
            raise UsageError(f"--root {self.root}: there is no such folder")
        device = named_device(self.device)
        fixed: dict[str, Any] = {"memory": one_of("--memory", self.memory, get_args(Memory))}
        named = {"engines": self.engines, "engines_first": self.engines_first, "device": device}
        fixed |= {name: value for name, value in named.items() if value is not None}
        limits = Limits(int(self.max_upload * (1 << 30)), int(self.disk * (1 << 30)), self.max_waiting)
        folder = self.folder or Path(platformdirs.user_data_dir("v2v")) / "jobs"
        with JobQueue(folder, fixed, limits, lanes(self.workers, device)) as queue:
            tempfile.tempdir = str(queue.uploads)  # /tmp may be small, or memory
            yield queue

    def needed_token(self, folder: Path) -> str | None:
        """The token of every request; None on this machine alone, unless one was given.

        One that was made is kept in ``folder``, so that browsers know it after a restart.
        """
        if self.token is not None or is_local(self.host):
            return self.token
        kept = folder / "token"
        with contextlib.suppress(FileExistsError), open(kept, "x", opener=_for_owner) as file:
            file.write(secrets.token_urlsafe(24))
        return kept.read_text().strip()


def serve(options: ServeOptions, make: Callable[[JobQueue], Any], uploads: tuple[str, ...]) -> None:
    """Run the application that ``make`` makes until the process is told to stop.

    Raises:
        V2VError: nothing can listen there, or an option cannot be read.
    """
    import uvicorn  # an extra

    from v2v.apps.guard import Guard

    with _listening(options.host, options.port) as listener, options.queue() as queue:
        token = options.needed_token(queue.folder)
        guarded = Guard(make(queue), token, uploads, queue.limits.upload, queue.has_room)
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            server_header=False,
            limit_concurrency=256,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        host = "localhost" if options.host in ("0.0.0.0", "::") else options.host  # where a browser finds it
        host = f"[{host}]" if ":" in host else host
        address = f"http://{host}:{listener.getsockname()[1]}/"
        query = f"?token={quote(token)}" if token else ""
        messages.print(
            f"listening on {address}{query} (Ctrl-C ends it; jobs are kept in {queue.folder})", markup=False
        )
        uvicorn.Server(config).run(sockets=[listener])


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def is_local(host: str) -> bool:
    """Whether nobody but this machine can reach ``host``."""
    return host in ("localhost", "::1") or host.startswith("127.")


def lanes(workers: int | None, device: str | None) -> list[dict[str, str]]:
    """Environment variables of each process that works at a time: on GPUs each sees its own.

    Raises:
        UsageError: there are fewer GPUs.
    """
    gpus = 0 if device == "cpu" else cuda_devices()
    if workers is not None and gpus and workers > gpus:
        raise UsageError(f"--workers {workers}: there are {gpus} GPUs here, and each job has its own")
    if not gpus:
        return [{}] * (workers or 1)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible[:gpus] if visible else [str(number) for number in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: workers or gpus]]


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise V2VError(f"--host {host} --port {port}: {error.strerror}; choose another one") from error
    with listener:
        yield listener


def missing(extra: str, error: ImportError) -> V2VError:
    """What is said where an extra is not installed."""
    return V2VError(f"{error.name or error} is not installed; install it with: pip install 'v2v[{extra}]'")
