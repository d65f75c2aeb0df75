"""``v2v-run --settings FILE``: options from a TOML or JSON file, or from what v2v has made: it says how.

    [in a .toml file]              v2v-run in.mp4 -o out.mp4 --settings mine.toml
    prompt = "a red fox"           v2v-run other.mp4 -o other-out.mp4 --settings out.mp4
    steps = 20
    size = "1280x720"

Names are those of the flags. What the command line says wins.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import msgspec.toml
import typer

from v2v.core.console import warn
from v2v.core.errors import UsageError
from v2v.core.files import read_limited
from v2v.core.version import __version__
from v2v.runtime.media.errors import FFmpegError
from v2v.runtime.media.image_sequence import SETTINGS
from v2v.runtime.media.streams import open_media

_LARGEST = 1 << 20  # bytes
_MADE_WITH = "made_with"  # what the settings of a finished run begin with
_SAID_BESIDES = (
    "model",
    "weights",
    _MADE_WITH,
)  # facts of a run that are no options: the engine set decides them
_FIXED_BY_PARITY = (
    *("size", "depth", "steps", "solver", "strength", "guidance", "guidance_rescale"),
    *("guidance_interval", "reuse", "color"),
)


def from_file(context: typer.Context, value: Path | None) -> Path | None:
    """Callback of the option: what the file says are the defaults of the other options.

    Raises:
        UsageError: the file cannot be read, or holds what is no option.
    """
    if value is not None:
        names = {parameter.name for parameter in context.command.params if parameter.name}
        context.default_map = {**(context.default_map or {}), **read_settings(value, names)}
    return value


def read_settings(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Options by the names of their parameters, as they would be typed.

    Raises:
        UsageError: the file cannot be read, or something in it is none of ``names``.
    """
    found = _read(path)
    if _MADE_WITH in found:
        found = _of_a_run(path, found)
    options = {}
    for told, value in found.items():
        name = {"json": "as_json", "input": "inputs"}.get(told, told.replace("-", "_"))
        if name not in names or name == "settings_file":
            near = difflib.get_close_matches(name, names, 1)
            advice = f"; did you mean {near[0]}?" if near else " (v2v-run --help lists them)"
            raise UsageError(f"--settings {path}: {told} is no option{advice}")
        options[name] = _typed(path, told, value)
    if isinstance(inputs := options.get("inputs"), str):
        options["inputs"] = [inputs]
    return options


def _read(path: Path) -> dict[str, Any]:
    decode: dict[str, Callable[[str], Any]] = {".toml": msgspec.toml.decode, ".json": msgspec.json.decode}
    try:
        if path.is_dir():  # of pictures that v2v has made
            path = path / SETTINGS
        if path.suffix.lower() not in decode:
            return _comment_of(path)
        found = decode[path.suffix.lower()](read_limited(path, _LARGEST).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"--settings {path}: {error.strerror}") from None
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"--settings {path}: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"--settings {path}: there must be names and values in it, as prompt = 'a fox'")
    return found


def _comment_of(path: Path) -> dict[str, Any]:
    """What a video that v2v has made says of itself."""
    try:
        with open_media(path) as opened:
            notes = [text for text in opened.metadata.values() if _MADE_WITH in text]
    except FFmpegError as error:
        raise UsageError(f"--settings {path}: neither .toml nor .json, and no video ({error})") from None
    for note in notes:
        try:
            return msgspec.json.decode(note, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
    raise UsageError(f"--settings {path}: this video does not say that v2v has made it")


def _of_a_run(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a finished run would be given to be repeated."""
    if facts[_MADE_WITH] != f"v2v {__version__}":
        warn(
            f"{path} was made with {facts[_MADE_WITH]}; v2v {__version__} may make something else of the same settings"
        )
    options = {
        k: v for k, v in facts.items() if k not in _SAID_BESIDES and v is not None and k != "first_stage"
    }
    if options.get("parity"):
        options = {k: v for k, v in options.items() if k not in _FIXED_BY_PARITY}
    first = facts.get("first_stage")
    if isinstance(first, Mapping):
        options |= {"frames": first.get("frames"), "steps_first": first.get("steps")}
        options |= {"engines_first": first.get("engines")}
        options.pop("cuts", None)  # a film made of a picture has none
    return {k: v for k, v in options.items() if v is not None}


def _typed(path: Path, name: str, value: Any) -> Any:
    """A value as the command line takes it."""
    if isinstance(value, list) and name not in ("input", "inputs"):
        between = {"size": "x"}.get(name, ":")
        value = between.join(map(str, value))
    if isinstance(value, dict):
        raise UsageError(f"--settings {path}: {name} is a table; give one value")
    return value if isinstance(value, bool | list) else str(value)
