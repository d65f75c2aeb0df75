"""Every command in README, CONTRIBUTING and docs/ runs, offline, in the installation that the text names.

A section names its installation by the last ``pip install`` before the command; without one it is the plain one. Lines
of ``sh`` blocks are run by bash, one by one, in a folder with the files that the docs talk of. Bash finds the programs
of that installation and those that :func:`programs` makes, and no others: a command that the docs begin to use fails
until it is here. What stands in for something, and why:

- ``v2v-run`` takes engines of a few lines of ONNX for the networks, but for the sample clip: the small model's.
- ``v2v-build-engines`` of the full models needs gigabytes of weights and many minutes. It is run up to the build, with
  all its options read, and then finds the engine set already built.
- ``pip`` has no network. Its requirements are read, and must be this project's, with extras that it has, or known.
  The wheel is really built and unpacked for the first command.
- ``pytest`` is running already: tests are collected, not run.
- ``make`` says what it would do.
- ``ffmpeg`` writes uncompressed video that the tests make, or like ``ffplay`` reads a video that comes in.
- ``v2v-serve`` and ``v2v-web`` are ended by Ctrl-C once they listen.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image

import v2v.apps.serve
import v2v.apps.web
import v2v.benchmarks.cli
import v2v.doctor.cli
import v2v.engine.cli
import v2v.runtime.cli
from tests.installation import EXTRAS, ROOT, Installation, closure, install
from tests.runtime.clips import make_video, picture
from tests.stand_ins import sets
from v2v.core.components import window_for
from v2v.core.configs import MODELS
from v2v.core.published import PUBLISHED
from v2v.engine.backend import BuildOptions
from v2v.engine.build import build_engine_set

DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
NOTES = ROOT / "benchmarks" / "NOTES.md"
PAGES = [*DOCS, NOTES, *(ROOT / name / "README.md" for name in ("assets", "engine/data", "training"))]
LANGUAGES = {"sh", "python", "text", "toml"}  # of code blocks; the last two are not run
BASH = shutil.which("bash") or "bash"
PLAIN: frozenset[str] = frozenset()
FIRST = "pip install . && v2v-run assets/sample.mp4"
QUICK = "v2v-bench --quick"
DOCTOR = "v2v-doctor"
SLOW = (FIRST, QUICK, DOCTOR, "v2v-build-engines small", "v2v-run film.mkv -o out.mkv --ray")
MODELSCOPE = "v2v.runtime.modelscope"  # in parity mode a clip is large
OUTPUT = re.compile(r"(?:\s-o|--compare|--report|--save-weights|>) (?!-)(\S+)")
OTHER_PACKAGES = {"onnxruntime-gpu", "pre-commit"}


@dataclass(frozen=True)
class Code:
    """A line of a shell block, or a whole Python block, and what is installed where the text shows it."""

    file: Path
    number: int  # of its line
    language: str
    text: str
    extras: frozenset[str]

    @property
    def parameter(self):
        """For ``parametrize``."""
        slow = [pytest.mark.slow] if self.text.startswith(SLOW) or MODELSCOPE in self.text else []
        return pytest.param(self, id=f"{self.file.name}:{self.number}", marks=slow)


def code(file: Path) -> Iterator[Code]:
    """All commands and Python blocks of a file."""
    extras, language, block, begin = PLAIN, None, [], 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and language is None:
            language, block, begin = line.strip("`"), [], number + 1
            assert language in LANGUAGES, f"{file.name}:{number}: a code block is one of {LANGUAGES}"
        elif line.startswith("```"):
            if language == "python":
                yield Code(file, begin, language, "\n".join(block) + "\n", extras)
            language = None
        elif language == "sh" and line.strip():
            if (requirement := re.match(r"pip install (?:-e )?'?\.(?:\[([\w,-]+)\])?", line)) is not None:
                extras = frozenset((requirement[1] or "").split(",")) - {""}
            yield Code(file, number, language, line, extras)
        elif language is not None:
            block.append(line)
        elif re.match("##? ", line):
            extras = PLAIN


ALL = list({(c.text, c.extras): c for file in reversed(DOCS) for c in code(file)}.values())
"""What two pages show is run once."""


def programs(folder: Path, python: Path, engines: Path) -> Path:
    """What stands in for something, as programs in ``folder``; ``python`` is the installation's."""
    folder.mkdir()
    here = f"PYTHONPATH='{os.environ.get('PYTHONPATH', '')}' {sys.executable}"
    collect = f"{here} -m pytest --collect-only -q -p no:cacheprovider"
    shell = {
        "python": f'[[ "$1 $2" == "-m pytest" ]] && exec {folder}/pytest "${{@:3}}"; exec {python} "$@"',
        "pytest": f'cd {ROOT} && {collect} "${{@:-tests/core}}"',
        "make": f'{shutil.which("make")} -C {ROOT} -n "$@"',
        "cat": f'{shutil.which("cat")} "$@"',
    }
    texts = {name: f"#!{BASH}\n{line}\n" for name, line in shell.items()}
    texts["pip"] = f"#!{sys.executable}\n{PIP}"
    for name in ("ffmpeg", "ffplay"):
        texts[name] = f"#!{sys.executable}\n{FFMPEG.format(root=str(ROOT))}"
    for name in ("v2v-serve", "v2v-web"):
        texts[name] = f"#!{sys.executable}\n{SERVE.format(program=python.parent / name)}"
    texts["v2v-build-engines"] = (
        f"#!{python}\n{BUILD.format(engines=engines, published=', '.join(map(repr, PUBLISHED)))}"
    )
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


PIP = f"""
import re, sys
command, *words = sys.argv[1:]
assert command == "install", command
(wanted,) = [word for word in words if word != "-e"]
extras = re.fullmatch(r"\\.(?:\\[([\\w,-]+)\\])?", wanted)
if extras is None:
    assert wanted in {OTHER_PACKAGES}, wanted
else:
    unknown = set((extras[1] or "").split(",")) - {{"", *{sorted(EXTRAS)}}}
    assert not unknown, unknown
"""

FFMPEG = """
import io, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import av
from tests.runtime import y4m

if sys.argv[-2:] == ["yuv4mpegpipe", "-"]:
    kind = "420p10" if "yuv420p10le" in sys.argv else "420jpeg"
    assert kind == "420jpeg" or "-strict" in sys.argv, "FFmpeg refuses more than 8 bits"
    sys.stdout.buffer.write(y4m.film(6, kind=kind))
else:
    came = sys.stdin.buffer.read()
    with av.open(io.BytesIO(came)) as video:
        assert len(list(video.decode(video=0))) == 6
    if sys.argv[-1] != "-":
        Path(sys.argv[-1]).write_bytes(came)
"""

SERVE = """
import signal, subprocess, sys
server = subprocess.Popen(["{program}", *sys.argv[1:], "--port", "0"], stderr=subprocess.PIPE, text=True)
said = server.stderr.readline()
server.send_signal(signal.SIGINT)
code = server.wait()
assert "listening on http://127.0.0.1:" in said and code == 130, (said + server.stderr.read(), code)
"""

BUILD = """
import sys
from importlib.util import find_spec
from pathlib import Path
import v2v.engine.cli as cli
from v2v.engine.build import Built
from v2v.engine.store import EngineSet

def build(model, *, weights, **facts):
    assert weights.startswith(("hf:", "random:")) or Path(weights).is_dir(), weights
    assert all(map(find_spec, ("torch", "onnx", "onnxscript", "safetensors"))), "this installation cannot export"
    if (folder := facts["save_weights"]) is not None:
        folder.mkdir()
        (folder / "unet.safetensors").write_bytes(b"as written by the build")
    return Built(EngineSet.open(Path("{engines}")), fresh=True)

if {{{published}}} & {{*sys.argv}}:
    cli.build_engine_set = build
if __name__ == "__main__":
    cli.main()
"""


@pytest.fixture(scope="session")
def installations(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Collection[str]], Installation]:
    """Lends an installation with the extras that it is asked for."""
    made: dict[frozenset[str], Installation] = {}

    def lend(extras: Collection[str]) -> Installation:
        content = frozenset(distribution.name for distribution in closure(extras))
        if content not in made:  # some extras differ only in what is not installed here
            made[content] = install(tmp_path_factory.mktemp("installation"), extras)
        return made[content]

    return lend


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """What ``pip install .`` gives, the wheel built and unpacked."""
    if not shutil.which("cmake"):
        pytest.skip("CMake is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder),
            *("-C", f"build-dir={folder / 'build'}", "-C", "cmake.define.CMAKE_CUDA_COMPILER=NOTFOUND"),
        ],
        check=True,
        timeout=300,
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as packed:
        packed.extractall(folder / "packages")
    return install(folder / "installation", packages=folder / "packages")


@pytest.fixture(scope="session")
def stand_in_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine set that passes for the small model's and runs in no time."""
    model = MODELS["small"]
    return build_engine_set(
        model,
        weights="random:0",
        window=window_for(model, (128, 104), 4),
        backend_name="onnxruntime",
        options=BuildOptions(),
        output=tmp_path_factory.mktemp("store") / "small",
        exporter=sets.ONNX,
    ).engine_set.path


@pytest.fixture(scope="session")
def first_stage_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the first stage."""
    model = MODELS["ms-image2video"]
    return build_engine_set(
        model,
        weights="random:0",
        window=window_for(model, (128, 64), 4),
        backend_name="onnxruntime",
        options=BuildOptions(),
        output=tmp_path_factory.mktemp("store") / "first",
        exporter=sets.ONNX,
    ).engine_set.path


@pytest.fixture(scope="session")
def steered_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same for models with a control branch."""
    folder = tmp_path_factory.mktemp("store")
    return [
        build_engine_set(
            MODELS[name],
            weights="random:0",
            window=window_for(MODELS[name], (128, 80), 4),
            backend_name="onnxruntime",
            options=BuildOptions(),
            output=folder / name,
            exporter=sets.ONNX,
        ).engine_set.path
        for name in ("star-light", "venhancer")
    ]


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory, stand_in_set: Path, first_stage_set: Path) -> Path:
    """A folder with all files that the docs name."""
    folder = tmp_path_factory.mktemp("cast")
    for name in ("FOLDER", "films", "more", "pictures", "path/of/an", "path/of/another"):
        (folder / name).mkdir(parents=True)
    for name, frames in {
        "clip.mp4": 6,
        "in.mp4": 2,
        "films/one.mp4": 5,
        "films/two.mkv": 5,
        "more/three.mkv": 5,
    }.items():
        make_video(folder / name, frames=frames, sounds=1)
    make_video(folder / "film.mkv", frames=32, sounds=1)
    for number in range(3):
        Image.fromarray(picture(number)).save(folder / "pictures" / f"{number}.png")
    (folder / "prompts.txt").write_text("# of the films\none.mp4: a fox in the snow\n")
    for name in ("old.json", "new.json"):
        shutil.copy(ROOT / "benchmarks/results/clip-h100/results.json", folder / name)
    Image.fromarray(picture(0)).save(folder / "picture.png")
    (folder / "path/of/an/engine-set").symlink_to(stand_in_set)
    (folder / "path/of/another/engine-set").symlink_to(first_stage_set)
    (folder / "assets").symlink_to(ROOT / "assets")
    np.save(folder / "frames.npy", np.stack([picture(number) for number in range(6)]))
    return folder


@pytest.fixture
def store(tmp_path: Path, stand_in_set: Path, first_stage_set: Path, steered_sets: list[Path]) -> Path:
    """A store that holds the sets above."""
    folder = tmp_path / "store"
    folder.mkdir()
    for name, target in {
        "small": stand_in_set,
        "first": first_stage_set,
        **{steered.name: steered for steered in steered_sets},
    }.items():
        (folder / name).symlink_to(target)
    return folder


@pytest.fixture
def place(cast: Path, tmp_path: Path) -> Path:
    """A copy of the cast's folder, to work in."""
    return shutil.copytree(cast, tmp_path / "place", symlinks=True)


@pytest.fixture(scope="module")
def ray_cluster(installations: Callable[[Collection[str]], Installation]) -> Iterator[dict[str, str]]:
    """A cluster on this machine that has room for one worker; gives the variables by which a command finds it."""
    pytest.importorskip("ray", reason="Ray is not installed: no wheel for this Python, or left out")
    installation = installations(["ray"])
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    start = "import ray; c = ray.init('local', num_cpus=1, include_dashboard=False)"
    cluster = subprocess.Popen(
        [installation.python, "-c", f"{start}; print(c.address_info['gcs_address'], flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=installation.environment(**own),
    )
    assert cluster.stdout is not None
    yield {**own, "RAY_ADDRESS": cluster.stdout.readline().strip()}
    cluster.communicate("\n", timeout=60)


@pytest.mark.parametrize("command", [found.parameter for found in ALL if found.language == "sh"])
def test_a_command_runs(
    command: Code,
    place: Path,
    tmp_path: Path,
    stand_in_set: Path,
    store: Path,
    installations: Callable[[Collection[str]], Installation],
    request: pytest.FixtureRequest,
) -> None:
    first = command.text.startswith(FIRST)
    extras = command.extras if "v2v-" in command.text else PLAIN
    installation = request.getfixturevalue("wheel") if first else installations(extras)
    desk = programs(tmp_path / "programs", installation.python, stand_in_set)
    environment = installation.environment(
        PATH=f"{desk}{os.pathsep}{installation.programs}",
        V2V_ENGINES=str(tmp_path / "empty" if command.text.startswith((FIRST, QUICK)) else store),
    )
    if "--ray" in command.text:
        environment |= request.getfixturevalue("ray_cluster")
    done = subprocess.run(
        [BASH, "-o", "pipefail", "-ec", command.text],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for output in OUTPUT.findall(command.text):
        made = place / output
        if "--dry-run" in command.text and not command.text.endswith(f"> {output}"):
            assert not made.exists(), output
            continue
        assert any(made.iterdir()) if made.is_dir() else made.stat().st_size > 0, output


@pytest.mark.parametrize("block", [found.parameter for found in ALL if found.language == "python"])
def test_a_python_block_runs(
    block: Code, place: Path, store: Path, installations: Callable[[Collection[str]], Installation]
) -> None:
    installation = installations(block.extras)
    script = place / "block.py"
    script.write_text(f"import numpy\nframes = list(numpy.load('frames.npy'))\n{block.text}")
    done = subprocess.run(
        [installation.python, script],
        cwd=place,
        env=installation.environment(V2V_ENGINES=str(store)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_plain_installation_has_neither_pytorch_nor_onnx(
    installations: Callable[[Collection[str]], Installation],
) -> None:
    """Otherwise commands would be tried in another installation than the text's."""
    look = "import importlib.util as u, v2v; print([n for n in ('torch', 'onnx', 'numpy') if u.find_spec(n)])"
    found = subprocess.run(
        [installations(PLAIN).python, "-c", look],
        capture_output=True,
        text=True,
        env=installations(PLAIN).environment(),
    )
    assert found.stdout.strip() == "['numpy']", found.stderr


COMMANDS = {
    "v2v-run": v2v.runtime.cli.app,
    "v2v-build-engines": v2v.engine.cli.app,
    "v2v-bench": v2v.benchmarks.cli.app,
    "v2v-doctor": v2v.doctor.cli.app,
    "v2v-serve": v2v.apps.serve.app,
    "v2v-web": v2v.apps.web.app,
}
OPTIONS = {
    name: {
        option
        for parameter in typer.main.get_command(app).params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    | {"--help"}
    for name, app in COMMANDS.items()
}
MENTION = re.compile(r"`([^`\n]+)`")
STUDY = re.compile(r"python -m (v2v\.[\w.]+)")


@pytest.mark.parametrize("file", [*DOCS, NOTES], ids=lambda file: file.name)
def test_options_that_are_mentioned_exist(file: Path) -> None:
    for mention in MENTION.findall(file.read_text(encoding="utf-8")):
        program, _, _ = mention.partition(" ")
        options = set(re.findall(r"(?<!\S)--?[a-z][\w-]*(?![\w:-])", mention))
        if program in OPTIONS:
            known = OPTIONS[program]
        elif program.startswith("-") and file != NOTES:  # there some are of studies
            known = set().union(*OPTIONS.values())
        elif (study := STUDY.match(mention)) is not None:
            spec = importlib.util.find_spec(study[1])
            assert spec is not None and spec.origin is not None, mention
            text = Path(spec.origin).read_text(encoding="utf-8")
            options = {o for o in options if o.startswith("--")}
            known = {o for o in options if o in text or f" {o[2:].replace('-', '_')}: " in text}
        else:
            continue
        assert options <= known, f"{file.name}: `{mention}`: {options - known}"


PATH = re.compile(r"(?:[\w.-]+/)+(?:[\w.-]+\.[a-z]+[0-9]*)?|[\w-]+\.(?:json|svg|md|py)")
FILES = {
    path.name
    for package in ("core", "device", "export", "engine", "runtime", "apps", "benchmarks", "training")
    for path in (ROOT / package).rglob("*.py")
}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_are_mentioned_exist(file: Path) -> None:
    places = [
        ROOT,
        file.parent,
        ROOT / "benchmarks",
        ROOT / "benchmarks" / "results",
        *(ROOT / "src").iterdir(),
    ]
    own = {"old.json", "new.json", "manifest.json", "tokenizer.json", "films/", "enhanced/", "frames/"}
    for mention in MENTION.findall(file.read_text(encoding="utf-8")):
        if PATH.fullmatch(mention) and mention not in own:
            there = mention in FILES or any((place / mention).exists() for place in places)
            assert there, f"{file.name}: `{mention}`"


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(file: Path) -> set[str]:
    """What the headings of a file are known by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{file.name}: {link}"
