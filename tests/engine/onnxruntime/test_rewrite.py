"""Graphs for ONNX Runtime's CUDA provider: the same numbers, in operations that it runs where the data lies.

The provider needs a GPU, so what its operations compute is taken from :mod:`cuda_operations`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from tests.engine.inductor import cuda_operations
from tests.stand_ins.sets import source_of
from v2v.core.components import COMPONENTS, ComponentName, Window, components
from v2v.core.configs import AutoencoderConfig, ModelConfig, TextEncoderConfig, UNetConfig
from v2v.core.errors import BuildError
from v2v.core.samples import relative_error, sample_inputs
from v2v.engine.backend import BuildOptions
from v2v.engine.onnxruntime import rewrite as onnxruntime_graph
from v2v.engine.onnxruntime.backend import OnnxRuntimeBackend
from v2v.engine.onnxruntime.layout import dense, merged, refined, reshaped
from v2v.engine.onnxruntime.rewrite import rewrite, rewrite_file
from v2v.export import graphs
from v2v.export.weights import METHOD_OF, Weights, load_weights

TINY = ModelConfig(
    "tiny",
    unet=UNetConfig(
        width=32,
        multipliers=(1, 2),
        blocks=1,
        head_size=16,
        stem_heads=4,
        context_width=32,
        attention=(True, False),
        groups=8,
    ),
    autoencoder=AutoencoderConfig(width=16, multipliers=(1, 2), blocks=1, groups=8),
    text_encoder=TextEncoderConfig(width=32, heads=2, layers=2),
)
WINDOW = Window(3, 20, 16, factor=2, levels=1)
SPATIAL_BLOCKS = 1 + 2 + 1  # on the way down, up, in the middle
TEMPORAL_BLOCKS = SPATIAL_BLOCKS + 1  # and the stem


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:1", TINY)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> dict[ComponentName, Path]:
    """Each component of TINY as the backend builds it for CUDA; the graph as exported lies one folder up."""
    options = BuildOptions(precision="fp16", device="cuda")
    made: dict[ComponentName, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_graph, "GATED_WIDTHS", (128, 256))
        for name in COMPONENTS:
            folder = tmp_path_factory.mktemp(name)
            (folder / "set").mkdir()
            graph = graphs.export_component(name, TINY, weights, WINDOW, "fp16", folder)
            source = source_of(components(TINY, WINDOW, "fp16")[name], graph.path)
            files = OnnxRuntimeBackend().build(source, folder / "set", options, lambda *_: None).files
            assert sorted(files) == sorted((folder / "set").iterdir())
            made[name] = files[0]
    return made


def operations(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("name", COMPONENTS)
def test_it_computes_what_pytorch_does(
    rewritten: dict[ComponentName, Path], weights: Weights, name: ComponentName
) -> None:
    inputs = sample_inputs(components(TINY, WINDOW, "fp16")[name], TINY.text_encoder.vocabulary)
    network = getattr(
        graphs.plain_network(name, TINY, weights).half().float(), METHOD_OF[name]
    )  # half precision is in the weights alone
    tensors = map(torch.from_numpy, inputs.values())
    with torch.inference_mode():
        expected = network(*(x.float() if x.is_floating_point() else x for x in tensors))
    found = cuda_operations.run(rewritten[name], inputs)
    assert len(found) == 1
    assert relative_error(found[0], expected.numpy()) < 1e-4


@pytest.mark.parametrize("name", COMPONENTS)
def test_inputs_and_outputs_stay(rewritten: dict[ComponentName, Path], name: ComponentName) -> None:
    graph = onnx.load(rewritten[name], load_external_data=False).graph
    component = components(TINY, WINDOW, "fp16")[name]
    for found, expected in ((graph.input, component.inputs), (graph.output, component.outputs)):
        assert [value.name for value in found] == [tensor.name for tensor in expected]
        shapes = [tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in found]
        assert shapes == [tensor.shape for tensor in expected]


def test_no_norm_is_left_to_be_expanded(rewritten: dict[ComponentName, Path]) -> None:
    """An expanded GroupNormalization computes shapes on the CPU."""
    for path in rewritten.values():
        assert not {"GroupNormalization", "InstanceNormalization", "Shape"} & set(operations(path))


def test_rows_move_once_before_and_once_after_attention_over_frames(
    rewritten: dict[ComponentName, Path],
) -> None:
    border = 2  # latents come and velocity leaves channels-first
    assert operations(rewritten["unet"])["Transpose"] == 2 * TEMPORAL_BLOCKS + border


def test_sums_come_with_the_norm_after_them(rewritten: dict[ComponentName, Path]) -> None:
    found = operations(rewritten["unet"])
    assert found["SkipLayerNormalization"] == 2 * (SPATIAL_BLOCKS + TEMPORAL_BLOCKS)  # each has two such sums
    assert found["SkipGroupNorm"] > 0
    assert found["Add"] <= 20  # vectors: a time step's shift for each residual block, and biases


def test_gates_are_one_operation_and_feed_forwards_in_pieces_become_whole(
    rewritten: dict[ComponentName, Path],
) -> None:
    found = operations(rewritten["unet"])
    assert found["BiasSplitGelu"] == SPATIAL_BLOCKS + TEMPORAL_BLOCKS
    assert not {"Gelu", "Split"} & set(found)


def test_a_gate_without_a_kernel_stays_in_its_pieces(
    rewritten: dict[ComponentName, Path], weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_graph, "GATED_WIDTHS", (256,))
    rewrite_file(rewritten["unet"].parent.parent / "unet.onnx", tmp_path / "unet.onnx")
    found = operations(tmp_path / "unet.onnx")
    assert found["Gelu"] > found["BiasSplitGelu"] > 0
    inputs = sample_inputs(components(TINY, WINDOW, "fp16")["unet"], TINY.text_encoder.vocabulary)
    (whole,), (pieces,) = (
        cuda_operations.run(path, inputs) for path in (rewritten["unet"], tmp_path / "unet.onnx")
    )
    assert relative_error(pieces, whole) < 1e-5


def test_a_norm_that_the_provider_cannot_do_is_named(rewritten: dict[ComponentName, Path]) -> None:
    """Its kernel reads channels in pairs."""
    model = ir.load(rewritten["unet"].parent.parent / "unet.onnx")
    for node in model.graph:
        if node.op_type == "GroupNormalization":
            node.attributes["num_groups"] = ir.AttrInt64("num_groups", 32)
    with pytest.raises(
        BuildError, match=r"no operation for GroupNormalization of .*; build with --precision fp32"
    ):
        rewrite(model)


def test_a_set_for_cuda_says_that_no_cpu_runs_it() -> None:
    made = OnnxRuntimeBackend()
    facts = made.facts(BuildOptions(precision="fp16", device="cuda"))
    assert "it was built for cuda, not for cpu" in made.fits(facts, "cpu").reason
    made.devices = ("cuda", "cpu")
    made.version = "1.25.0"
    assert made.fits(facts, "cuda").fits


# Layouts ----------------------------------------------------------------------------------------------------


def test_a_transposed_view_is_cut_where_its_factors_end() -> None:
    frames, positions, channels = dense((32, 20, 8))
    by_position = (positions, frames, channels)
    assert reshaped(by_position, (640, 8)) == (((20, 8), (32, 160)), ((8, 1),))
    assert reshaped(reshaped(by_position, (640, 8)) or (), (20, 32, 2, 4)) == (
        ((20, 8),),
        ((32, 160),),
        ((2, 4),),
        ((4, 1),),
    )


def test_a_cut_across_factors_is_refused() -> None:
    layout = (dense((6, 4))[1], dense((6, 4))[0])
    assert reshaped(layout, (3, 8)) is None


def test_neighbours_join() -> None:
    assert merged(((2, 12), (3, 4), (4, 1))) == ((24, 1),)
    assert merged(((3, 4), (2, 12))) == ((3, 4), (2, 12))


def test_axes_are_cut_alike() -> None:
    assert refined(((6, 1),), ((2, 10), (3, 1))) == (((2, 3), (3, 1)), ((2, 10), (3, 1)))
    assert refined(((2, 3), (3, 1)), ((3, 2), (2, 1))) is None
