"""``--verify --layers`` finds the layer at which an engine goes wrong."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from tests.stand_ins.graphs import onnx_model
from tests.stand_ins.model import MODEL, WINDOW
from tests.stand_ins.sets import ONNX, CopyBackend, build, install, source_of
from v2v.core.components import Component, components
from v2v.core.errors import EngineError, UsageError
from v2v.core.samples import sample_inputs
from v2v.engine import cli
from v2v.engine.backend import BuildOptions, Compatibility, Compiled, backend
from v2v.engine.layers import Subject, first_wrong_layer, wrong_layers


class Miscompiling:
    """ONNX Runtime, but what makes the tensor ``fault`` adds where it should subtract, or so."""

    name, version, devices = "miscompiling", "1", ("cpu",)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.builds = 0

    def build(self, source: Any, folder: Path, options: BuildOptions, progress: Any) -> Compiled:
        self.builds += 1
        graph = onnx.load(source.graph().path)
        for node in graph.graph.node:
            if self.fault in node.output:
                node.op_type = {"Add": "Sub", "Mul": "Add"}[node.op_type]
        onnx.save(graph, folder / "graph.onnx")
        return Compiled([folder / "graph.onnx"], 0.0)

    def facts(self, options: BuildOptions) -> dict[str, Any]:
        return {}

    def tolerance(self, name: str, options: BuildOptions) -> float:
        return 1e-3

    def fits(self, facts: Any, device: str) -> Compatibility:
        return Compatibility(True)

    def load(self, component: Component, files: list[Path], device: str) -> Any:
        return backend("onnxruntime").load(component, files, device)


def chain(length: int, folder: Path) -> tuple[Component, Path]:
    """A graph of ``length`` additions in a row."""
    from v2v.core.components import Tensor

    component = Component(
        "unet", (Tensor("latents", "float32", (4,)),), (Tensor("velocity", "float32", (4,)),)
    )
    names = ["latents", *(f"t{number}" for number in range(1, length)), "velocity"]
    one = onnx.numpy_helper.from_array(np.ones(4, np.float32), "stage.one.weight")
    nodes = [
        onnx.helper.make_node("Add", [source, "stage.one.weight"], [result])
        for source, result in zip(names, names[1:], strict=False)
    ]

    def value(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (4,))

    graph = onnx.helper.make_graph(
        nodes, "chain", [value("latents")], [value("velocity")], [one], value_info=[*map(value, names[1:-1])]
    )
    path = folder / "unet.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path
    )
    return component, path


@pytest.mark.parametrize("fault", ["t1", "t2", "t137", "t199", "velocity"])
def test_the_first_wrong_layer_is_found_among_many_in_few_builds(tmp_path: Path, fault: str) -> None:
    component, path = chain(200, tmp_path)
    faulty = Miscompiling(fault)
    subject = Subject(source_of(component, path), faulty, BuildOptions(), "cpu")  # type: ignore[arg-type]
    layers, wrong = first_wrong_layer(subject, {"latents": np.arange(4, dtype=np.float32)}, tmp_path)
    assert wrong is not None
    assert (wrong.name, wrong.operator, wrong.place) == (fault, "Add", "stage.one")
    assert wrong.error > 1e-3
    assert all(layer.error == 0 for layer in layers[: layers.index(wrong)])
    assert faulty.builds <= 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["unet.onnx"]


def test_where_nothing_is_wrong_one_round_is_enough(tmp_path: Path) -> None:
    component, path = chain(50, tmp_path)
    right = Miscompiling()
    subject = Subject(source_of(component, path), right, BuildOptions(), "cpu")  # type: ignore[arg-type]
    layers, wrong = first_wrong_layer(subject, {"latents": np.ones(4, np.float32)}, tmp_path)
    assert wrong is None
    assert [layer.name for layer in layers][-1] == "velocity"
    assert right.builds == 1


def test_a_set_with_a_wrong_layer_is_told_by_component_and_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_shapes(*arguments: Any) -> Any:
        made = ONNX.export_component(*arguments)
        graph = onnx.shape_inference.infer_shapes(onnx.load(made.path, load_external_data=False))
        onnx.save(graph, made.path)
        return made

    from dataclasses import replace

    exporter = replace(ONNX, export_component=with_shapes)
    faulty = Miscompiling("sum")
    install(faulty, monkeypatch)  # type: ignore[arg-type]
    made = build(backend="miscompiling", exporter=exporter).engine_set
    found = {name: wrong for name, _, wrong in wrong_layers(made, "cpu", exporter=exporter)}
    assert {name: wrong and wrong.name for name, wrong in found.items()} == {
        "text_encoder": None,
        "vae_encoder": None,
        "unet": "sum",
        "vae_decoder": None,
    }
    monkeypatch.setattr(cli, "wrong_layers", lambda *a: wrong_layers(*a[:2], exporter=exporter))
    with pytest.raises(EngineError, match=r"unet of .* goes wrong at the layer 'sum' \(Add in"):
        cli.show_layers(made, "cpu")
    assert "sum" in capsys.readouterr().out


def test_what_has_no_layers_to_compare_says_so(tmp_path: Path) -> None:
    made = build(backend="onnxruntime", exporter=ONNX).engine_set
    with pytest.raises(EngineError, match="this set is that itself"):
        next(wrong_layers(made, "cpu"))
    with pytest.raises(UsageError, match="--layers belongs to --verify"):
        cli.command(layers=True, debug=False)
    component, path = chain(3, tmp_path)
    fused = Miscompiling()
    fused.name = "inductor"
    subject = Subject(source_of(component, path), fused, BuildOptions(), "cpu")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="compiles networks, not graphs"):
        first_wrong_layer(subject, {}, tmp_path)


def test_a_set_with_products_in_fp8_says_that_its_graph_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    install(CopyBackend(), monkeypatch)
    made = build(options=BuildOptions(extra={"fp8": "yes"})).engine_set
    with pytest.raises(EngineError, match="was built with --option fp8=yes: build a set without it"):
        next(wrong_layers(made, "cpu"))


def test_a_cut_graph_compiles_in_nvidias_compiler(tensorrt: ModuleType, tmp_path: Path) -> None:
    """What a round asks of TensorRT: a part of a component, with other outputs."""
    from v2v.engine.layers import cut
    from v2v.engine.tensorrt.backend import TensorRTBackend

    component = components(MODEL, WINDOW, "fp16")["unet"]
    path = tmp_path / "unet.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx_model(component, MODEL)), path)
    part = cut(component, path, ["mean", "own"], tmp_path / "cut.onnx")
    assert [tensor.name for tensor in part.inputs] == ["latents"]
    assert [tensor.name for tensor in part.outputs] == ["mean", "own"]
    files = (
        TensorRTBackend()
        .build(
            source_of(part, tmp_path / "cut.onnx"), tmp_path, BuildOptions("fp16", "cuda"), lambda *_: None
        )
        .files
    )
    assert files[0].stat().st_size > 0
    assert sample_inputs(part, 1).keys() == {"latents"}
