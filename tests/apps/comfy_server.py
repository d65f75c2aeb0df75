"""The real ComfyUI, headless on a CPU, with v2v's nodes among its custom nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

NODES = Path(__file__).parents[2] / "apps" / "comfyui"
WORKFLOWS = NODES / "example_workflows"

# Writes what ComfyUI tells its page, one line each; with the Python of ComfyUI, which has aiohttp.
_LISTEN = """
import asyncio, json, sys, aiohttp
async def listen(address):
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        print(json.dumps({"type": "listening"}), flush=True)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                print(message.data, flush=True)
            elif message.type == aiohttp.WSMsgType.BINARY:
                print(json.dumps({"type": "picture", "bytes": len(message.data)}), flush=True)
asyncio.run(listen(sys.argv[1]))
"""


def python_of(comfyui: Path) -> Path:
    """The Python that a checkout of ComfyUI is run with: of a virtual environment in it, or this one."""
    for name in (".venv", "venv"):
        if (python := comfyui / name / "bin" / "python").exists():
            return python
    return Path(sys.executable)


class ComfyUI:
    """A server in a process of its own, and somebody who listens to it. ``base`` is its folder."""

    def __init__(self, checkout: Path, base: Path) -> None:
        self.base, python = base, python_of(checkout)
        for name in ("custom_nodes", "input", "output", "user"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "comfyui-v2v").symlink_to(NODES)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ("--cpu", "--port", str(port), "--base-directory", base, "--disable-metadata")
        with (base / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [python, checkout / "main.py", *options],
                cwd=checkout,
                stdout=log,
                stderr=log,
                env=os.environ | {"V2V_THREADS": "1", "V2V_ENGINES": str(base / "store")},
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._until(self._answers)
        with (base / "told").open("wb") as told:
            self.listener = subprocess.Popen(
                [python, "-c", _LISTEN, f"ws://127.0.0.1:{port}/ws?clientId=test"], stdout=told
            )
        self._until(lambda: bool(self.told()))
        self.nodes: dict[str, Any] = self.client.get("/object_info").json()

    @property
    def said(self) -> str:
        """What it has printed."""
        return (self.base / "log").read_text(errors="replace")

    def told(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """What it has told its page: of one prompt, or of all."""
        lines = (self.base / "told").read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [e for e in events if prompt is None or e.get("data", {}).get("prompt_id") == prompt]

    def prompt_of(self, workflow: str) -> dict[str, Any]:
        """An example workflow, which is for ComfyUI's page, as its page sends it."""
        drawn = json.loads((WORKFLOWS / f"{workflow}.json").read_text())
        links = {link[0]: [str(link[1]), link[2]] for link in drawn["links"]}
        return {
            str(node["id"]): {
                "class_type": node["type"],
                "inputs": widgets(self.nodes[node["type"]], node["widgets_values"])
                | {i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None},
            }
            for node in drawn["nodes"]
        }

    def send(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt; returns its number."""
        answer = self.client.post("/prompt", json={"prompt": prompt, "client_id": "test"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt_id"])

    def result(self, number: str) -> dict[str, Any]:
        """What became of a prompt, once it is over."""
        self._until(lambda: number in self.client.get(f"/history/{number}").json())
        return dict(self.client.get(f"/history/{number}").json()[number])

    def do(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Send a prompt and wait for what becomes of it, which is good."""
        result = self.result(self.send(prompt))
        assert result["status"]["status_str"] == "success", result["status"]
        return result

    def interrupt_when(self, ready: Any) -> None:
        """Press the button as soon as ``ready()``."""
        self._until(ready)
        self.client.post("/interrupt").raise_for_status()

    def stop(self) -> None:
        """End both processes."""
        for process in (self.listener, self.process):
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def _answers(self) -> bool:
        try:
            return self.client.get("/system_stats").status_code == 200
        except httpx.TransportError:
            return False

    def _until(self, ready: Any) -> None:
        end = time.monotonic() + 300
        while not ready():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)


def widgets(node: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The values of a node's widgets by name: a seed has a second one, and a file a button, which are not sent."""
    left, named = list(values), {}
    for name in [*node["input_order"]["required"], *node["input_order"].get("optional", [])]:
        kind, *more = (node["input"]["required"] | node["input"].get("optional", {}))[name]
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            named[name] = left.pop(0)
            if more and more[0].get("control_after_generate"):
                assert left.pop(0) in ("fixed", "randomize", "increment", "decrement")
    assert left in ([], ["image"]), left
    return named
