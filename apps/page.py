"""The page in the browser: what is asked for on the left, the run that is looked at on the right, all runs below."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from fastapi import FastAPI

from v2v.apps.job import OVER, Job
from v2v.apps.jobs import JobQueue
from v2v.apps.service import JOBS
from v2v.core.configs import MODELS
from v2v.core.console import seconds_text
from v2v.core.errors import V2VError
from v2v.runtime.media.image_sequence import PICTURES
from v2v.runtime.options import PREVIEW_SECONDS

T = TypeVar("T")

UPLOAD = "/gradio_api/upload"
_SHOWN = 50  # runs in the list
_DAY = 86400
_BEST = "automatic"
_CHOSEN = (
    "element.addEventListener('click', (event) => { const run = event.target.closest('[data-run]'); "
    + ("if (run) trigger('click', {run: run.dataset.run}); });")
)
_STYLE = """
.gradio-container { width: 100%; max-width: 75rem !important; margin: 0 auto !important }
.v2v-runs button { display: flex; gap: .75rem; width: 100%; padding: .6rem .75rem; border: 0; background: none;
  border-bottom: 1px solid var(--border-color-primary); font: inherit; color: inherit;
  text-align: left; cursor: pointer }
.v2v-runs button[aria-current=true] { background: var(--background-fill-secondary); font-weight: 600 }
.v2v-runs .name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.v2v-state progress { appearance: none; width: 100%; height: .6rem; border: 0; border-radius: .3rem; overflow: hidden;
  background: var(--border-color-primary) }
.v2v-state progress::-webkit-progress-bar { background: var(--border-color-primary) }
.v2v-state progress::-webkit-progress-value { background: var(--color-accent) }
.v2v-state progress::-moz-progress-bar { background: var(--color-accent) }
.v2v-state p { margin: .25rem 0; overflow-wrap: anywhere }
.v2v-result video { width: 100%; max-height: 70vh; border-radius: 8px; background: #000 }
.v2v-result div[style] { position: relative; padding-bottom: calc(100% * var(--shape) + 8.5rem) }
.v2v-result iframe { position: absolute; inset: 0; width: 100%; height: 100%; border: 0; border-radius: 8px }
.v2v-result a { color: var(--color-accent); font-weight: 600 }
.v2v-quiet { opacity: .75 }
"""


def add_page(app: FastAPI, queue: JobQueue) -> FastAPI:
    """Put the page at the root of the service."""
    os.environ["GRADIO_TEMP_DIR"] = str(queue.uploads)  # on the disk of the jobs, and emptied at the start
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        _Page(queue).blocks(),
        path="/",
        server_name="127.0.0.1",
        max_file_size=queue.limits.upload,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        pwa=False,
        # Fonts of the system: nothing is loaded from elsewhere.
        theme=gr.themes.Default(
            primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"]
        ),
        css=_STYLE,
    )
    return mounted


class _Page:
    """Shows a queue."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue

    def blocks(self) -> gr.Blocks:
        """The page's parts, and what happens when something is pressed."""
        page: gr.Blocks
        with gr.Blocks(
            title="v2v", analytics_enabled=False, fill_width=True, delete_cache=(3600, _DAY)
        ) as page:
            chosen, seen = gr.State(""), gr.State("")
            gr.Markdown("# v2v\nEnhances videos, guided by text. A picture becomes a film.")
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    file = gr.File(label="Video or picture", file_types=["video", "image"], height=140)
                    prompt = gr.Textbox(
                        label="Prompt", placeholder="what the video shows: a red fox in the snow", lines=2
                    )
                    with gr.Row():
                        models = [
                            (_BEST, ""),
                            *((m.name, m.name) for m in MODELS.values() if m.image_encoder is None),
                        ]
                        model = gr.Dropdown(models, value="", label="Model", min_width=140)
                        strength = gr.Textbox(
                            label="Strength, 0 to 1",
                            placeholder="the model's own",
                            max_lines=1,
                            min_width=140,
                        )
                    fast = gr.Checkbox(label="Fast mode: fewer and cheaper steps")
                    with gr.Row():
                        preview = gr.Button(f"Preview {PREVIEW_SECONDS} s", variant="primary", min_width=140)
                        whole = gr.Button("Enhance all", min_width=140)
                with gr.Column(scale=3, min_width=320):
                    state = gr.HTML(elem_classes="v2v-state")
                    result = gr.HTML(elem_classes="v2v-result")
                    with gr.Row():
                        go_on = gr.Button("Enhance all like this", variant="primary", visible=False)
                        cancel = gr.Button("Cancel", size="sm", visible=False)
                        resume = gr.Button("Go on with it", size="sm", visible=False)
                        delete = gr.Button("Delete", size="sm", visible=False)
            gr.Markdown("## Runs")
            runs = gr.HTML(elem_classes="v2v-runs", js_on_load=_CHOSEN)
            asked = [file, prompt, strength, model, fast]
            shown = [state, result, runs, go_on, cancel, resume, delete, seen]
            quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}
            preview.click(self._preview, asked, chosen, api_name="preview").then(
                self._show, chosen, shown, **quiet
            )
            whole.click(self._whole, asked, chosen, api_name="enhance").then(
                self._show, chosen, shown, **quiet
            )
            for button, act, name in (
                (go_on, self._whole_like, "enhance_like"),
                (cancel, self._cancel, "cancel"),
                (resume, self._resume, "resume"),
                (delete, self._delete, "delete"),
            ):
                button.click(act, chosen, chosen, api_name=name, **quiet).then(
                    self._show, chosen, shown, **quiet
                )
            runs.click(_run_of, None, chosen, api_visibility="private", **quiet).then(
                self._show, chosen, shown, api_visibility="private", **quiet
            )
            page.load(self._newest, None, chosen, api_visibility="private", **quiet).then(
                self._show, chosen, shown, api_visibility="private", **quiet
            )
            gr.Timer(1).tick(self._look, [chosen, seen], shown, api_visibility="private", **quiet)
        return page

    # What is pressed

    def _preview(self, file: str | None, prompt: str, strength: str, model: str, fast: bool) -> str:
        return self._submit(file, _options(prompt, strength, model, fast) | {"preview": str(PREVIEW_SECONDS)})

    def _whole(self, file: str | None, prompt: str, strength: str, model: str, fast: bool) -> str:
        return self._submit(file, _options(prompt, strength, model, fast))

    def _submit(self, file: str | None, options: dict[str, Any]) -> str:
        if file is None:
            raise gr.Error("Choose a video or a picture first.", print_exception=False)
        path = Path(file)
        if "preview" in options and path.suffix.lower() in PICTURES:
            raise gr.Error(
                "A picture has no preview: it becomes a film of a few seconds.", print_exception=False
            )
        return _told(
            lambda: self._queue.submit(
                path.name, options, take=lambda to: _link(path, to), size=path.stat().st_size
            )
        ).id

    def _whole_like(self, chosen: str) -> str:
        def again() -> Job:
            job = self._queue.get(chosen)
            options = {name: value for name, value in job.options.items() if name != "preview"}
            source = self._queue.path_of(job, "source")
            if Path(job.source).is_absolute():
                return self._queue.submit(job.name, options, source=source)
            return self._queue.submit(
                job.name, options, take=lambda to: _link(source, to), size=source.stat().st_size
            )

        return _told(again).id

    def _cancel(self, chosen: str) -> str:
        return _told(lambda: self._queue.cancel(chosen)).id

    def _resume(self, chosen: str) -> str:
        return _told(lambda: self._queue.resume(chosen)).id

    def _delete(self, chosen: str) -> str:
        _told(lambda: self._queue.delete(chosen))
        return self._newest()

    # What is shown

    def _newest(self) -> str:
        return next((job.id for job in self._queue.jobs()), "")

    def _look(self, chosen: str, seen: str) -> list[Any]:
        """What has changed since it was last looked at."""
        shown = self._show(chosen)
        if shown[-1] == seen:
            return [gr.skip()] * len(shown)
        if shown[-1].split()[0] == seen.partition(" ")[0]:  # a player that plays is left alone
            shown[1] = gr.skip()
        return shown

    def _show(self, chosen: str) -> list[Any]:
        """All that depends on the run that is looked at; at last a text that changes when any of it does."""
        jobs = self._queue.jobs()
        job = next((job for job in jobs if job.id == chosen), None)
        runs = "".join(_row(each, each.id == chosen) for each in jobs[:_SHOWN])
        state = (
            "<p class=v2v-quiet>Nothing runs. What you have enhanced appears here.</p>" if job is None else ""
        )
        result = ""
        if job is not None:
            ahead = self._queue.ahead_of(job.id)
            state = _state(job, ahead)
            result = _notes(job) + (self._result(job) if job.state == "done" else "")
        now = job.state if job else ""
        visible = [
            now == "done" and job is not None and "preview" in job.options,
            now in ("queued", "running"),
            now in ("failed", "cancelled"),
            now in (*OVER, "queued"),
        ]
        signature = f"{hash((chosen, now, result))} {hash((state, runs))}"
        return [
            state,
            result,
            runs or "<p class=v2v-quiet>None yet.</p>",
            *(gr.update(visible=each) for each in visible),
            signature,
        ]

    def _result(self, job: Job) -> str:
        here = f"{JOBS[1:]}/{job.id}"
        name = html.escape(job.download_name)
        if self._queue.path_of(job, "compare").is_file():
            width, height = job.settings["size"].split("x")
            player = (
                f'<div style="--shape: {height} / {width}">'
                f'<iframe src="{here}/compare" title="before and after"></iframe></div>'
            )
        else:
            player = (
                f'<video src="{here}/result?inline=true" controls loop muted autoplay playsinline></video>'
            )
        return f'{player}<p><a href="{here}/result" download="{name}">Download {name}</a></p>'


def _options(prompt: str, strength: str, model: str, fast: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": prompt, "model": model, "fast": fast}
    try:
        given["strength"] = float(strength) if strength.strip() else None
    except ValueError:
        raise gr.Error(
            "Strength is a number from 0 to 1, as 0.5, or nothing.", print_exception=False
        ) from None
    return {name: value for name, value in given.items() if value not in (None, "", False)}


def _run_of(event: gr.EventData) -> str:
    return str(event.run)


def _told(act: Callable[[], T]) -> T:
    """Do it; what a person can put right is shown to that person."""
    try:
        return act()
    except V2VError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where that cannot be."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _row(job: Job, current: bool) -> str:
    kind = "preview" if "preview" in job.options else "whole"
    done = job.progress.fraction if job.state == "running" else None
    state = job.state if done is None else f"{done:.0%}"
    return (
        f'<button data-run="{job.id}" aria-current="{str(current).lower()}">'
        f'<span class="name">{html.escape(job.name)}</span><span class="v2v-quiet">{kind}</span>'
        f"<span>{state}</span></button>"
    )


def _state(job: Job, ahead: int) -> str:
    """How a run is, for people."""
    lines = [f"<b>{html.escape(job.name)}</b>"]
    if job.options.get("prompt"):
        lines.append(f"<span class=v2v-quiet>{html.escape(job.options['prompt'])}</span>")
    now, bar = job.progress, ""
    if job.state == "queued":
        lines.append("next in the queue" if ahead == 0 else f"{ahead} before it in the queue")
    elif job.state == "running":
        value = "" if now.fraction is None else f' value="{now.fraction:.3f}"'
        bar = f"<progress max=1{value}></progress>"
        of = "" if now.frames_total is None else f" of {now.frames_total}"
        left = "" if now.seconds_left is None else f", {_left(now.seconds_left)} left"
        working = f"{now.frames_done}{of} frames{left}" if now.stage else "getting ready"
        lines.append(html.escape(job.news or working))
    elif job.state == "failed":
        lines.append(f"failed: {html.escape(job.error)}")
    elif job.state == "done":
        took = seconds_text((job.ended or 0) - (job.started or 0))
        lines.append(f"{job.frames} frames of {html.escape(str(job.settings.get('size', '')))} in {took}")
    else:
        lines.append("cancelled; what is finished of it is kept")
    return bar + "".join(f"<p>{line}</p>" for line in lines)


def _notes(job: Job) -> str:
    """What a run has warned of."""
    notes = "".join(f"<li>{html.escape(each)}</li>" for each in job.warnings)
    return f"<details><summary>Notes</summary><ul>{notes}</ul></details>" if notes else ""


def _left(seconds: float) -> str:
    """Time left, no finer than it is known."""
    return f"{max(seconds, 1):.0f} s" if seconds < 100 else seconds_text(seconds)
