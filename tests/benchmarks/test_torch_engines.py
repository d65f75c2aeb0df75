"""The baselines compute what the engines compute, and their work is counted as it says."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from v2v.benchmarks.torch_engines import Traffic, WholeAttention, baseline_engines, work  # noqa: E402
from v2v.core.components import COMPONENTS, window_for  # noqa: E402
from v2v.core.configs import MODELS  # noqa: E402
from v2v.core.errors import EngineError  # noqa: E402
from v2v.core.samples import sample_inputs  # noqa: E402
from v2v.engine.verify import worst_error  # noqa: E402
from v2v.export.weights import load_weights  # noqa: E402


@pytest.mark.parametrize("name", COMPONENTS)
def test_eager_pytorch_gives_what_the_engine_gives(small_engine_set, tmp_path, name):
    recipe = small_engine_set.manifest.recipe
    weights = load_weights(recipe.weights.source, recipe.model)
    baseline = baseline_engines(tmp_path, "eager", recipe.model, recipe.window, weights, "cpu")
    assert weights.identity == recipe.weights.identity
    component = small_engine_set.component(name)
    inputs = sample_inputs(component, recipe.model.text_encoder.vocabulary)
    found = []
    for engines in (small_engine_set, baseline):
        outputs = {t.name: np.empty(t.shape, t.dtype) for t in component.outputs}
        engine = engines.load(name, "cpu")
        engine.run(inputs, outputs)
        engine.close()
        found.append(outputs)
    assert worst_error(found[1], found[0]) < 1e-4


def test_a_baseline_on_cuda_without_cuda_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = MODELS["small"]
    with pytest.raises(EngineError, match="cannot use CUDA"):
        baseline_engines(tmp_path, "eager", model, window_for(model), load_weights("random:0", model), "cuda")


def test_a_closed_engine_says_so(small_engine_set, tmp_path):
    recipe = small_engine_set.manifest.recipe
    weights = load_weights("random:0", recipe.model)
    baseline = baseline_engines(tmp_path, "eager", recipe.model, recipe.window, weights, "cpu")
    engine = baseline.load("text_encoder", "cpu")
    engine.close()
    component = engine.component
    outputs = {t.name: np.empty(t.shape, t.dtype) for t in component.outputs}
    with pytest.raises(EngineError, match="closed"):
        engine.run(sample_inputs(component, 100), outputs)


def test_a_full_size_evaluation_is_185_tflop():
    """Measured independently: convolutions 71.9, linear 64.4, attention 49.6, together 185.8 TFLOP."""
    model = MODELS["ms-vid2vid-xl"]
    found = {counted.component: counted for counted in work(model, window_for(model), "fp16")}
    assert found["unet"].flops == pytest.approx(185.8e12, rel=0.005)
    weights = 2 * 1_411_233_860
    assert found["unet"].bytes > weights


def test_traffic_is_inputs_and_result():
    a, b = torch.empty(10, 30, device="meta"), torch.empty(30, 20, device="meta")
    with Traffic() as traffic:
        a @ b
    assert traffic.flops == 2 * 10 * 20 * 30
    assert traffic.bytes == 4 * (10 * 30 + 30 * 20 + 10 * 20)


def test_scores_of_attention_are_no_traffic():
    q = torch.empty(1, 2, 1000, 16, device="meta")
    with torch.no_grad(), Traffic() as traffic, WholeAttention(traffic):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert traffic.flops == 2 * 2 * 2 * 1000 * 1000 * 16
    assert traffic.bytes == 4 * 4 * q.numel()
