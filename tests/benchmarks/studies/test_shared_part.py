"""What no prompt changes is counted as it says."""

from __future__ import annotations

import pytest

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("torch")

from onnx import TensorProto, helper, shape_inference  # noqa: E402

from v2v.benchmarks.studies.shared_part import counted  # noqa: E402


def test_products_before_and_behind_the_prompt_are_counted_apart() -> None:
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["latents", "kernel"], ["map"], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["map", "shape"], ["tokens"]),
            helper.make_node("MatMul", ["context", "weight"], ["words"]),
            helper.make_node("Attention", ["tokens", "words", "words"], ["out"]),
        ],
        "unet",
        [
            helper.make_tensor_value_info("latents", half, [1, 4, 6, 8]),
            helper.make_tensor_value_info("context", half, [1, 1, 7, 5]),
        ],
        [helper.make_tensor_value_info("out", half, [1, 1, 48, 16])],
        [
            helper.make_tensor("kernel", half, [16, 4, 3, 3], [0.0] * 576),
            helper.make_tensor("weight", half, [5, 16], [0.0] * 80),
            helper.make_tensor("shape", TensorProto.INT64, [4], [1, 1, 48, 16]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    found = counted(ir.serde.deserialize_model(shape_inference.infer_shapes(model)))
    before, behind = 2 * 16 * 48 * 36, 2 * 7 * 16 * 5 + 4 * 48 * 7 * 16
    assert found["shared_tflop"] == pytest.approx(before / 1e12)
    assert found["tflop"] == pytest.approx((before + behind) / 1e12)
    assert found["handed_mib"] == pytest.approx(2 * 48 * 16 / 2**20)
