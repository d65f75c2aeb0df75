"""The small model's real engine set computes what PyTorch computes with the same weights."""

from __future__ import annotations

import numpy as np
import pytest

from v2v.core.components import COMPONENTS, ComponentName
from v2v.core.samples import sample_inputs
from v2v.device import open_device
from v2v.engine.store import EngineSet
from v2v.engine.verify import run_once, verify_engine_set, worst_error

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", COMPONENTS)
def test_engines_agree_with_pytorch(small_engine_set: EngineSet, name: ComponentName) -> None:
    from v2v.export.weights import load_weights

    recipe = small_engine_set.manifest.recipe
    weights = load_weights("random:0", recipe.model)
    engine = small_engine_set.load(name, "cpu")
    inputs = sample_inputs(engine.component, recipe.model.text_encoder.vocabulary, seed=5)
    found = run_once(engine, inputs, open_device("cpu"))
    engine.close()
    if name in ("vae_encoder", "vae_decoder"):
        network = weights.load("autoencoder")
        call = network.encode if name == "vae_encoder" else network.decode
    else:
        call = weights.load(name)
    with torch.inference_mode():
        expected = call(*map(torch.from_numpy, inputs.values())).numpy()
    assert worst_error(found, {engine.component.outputs[0].name: expected}) < 1e-4


def test_the_manifest_holds_the_error_against_pytorch(small_engine_set: EngineSet) -> None:
    for name in COMPONENTS:
        assert 0 < small_engine_set.manifest.components[name].error < 1e-4


def test_it_says_that_its_weights_are_random(small_engine_set: EngineSet) -> None:
    assert small_engine_set.manifest.recipe.weights.kind == "random"


def test_it_verifies(small_engine_set: EngineSet) -> None:
    verified = verify_engine_set(small_engine_set, "cpu")
    assert [one.component for one in verified] == list(COMPONENTS)


def test_the_same_input_gives_the_same_bytes(small_engine_set: EngineSet) -> None:
    results = []
    for _ in range(2):
        engine = small_engine_set.load("unet", "cpu")
        results.append(run_once(engine, sample_inputs(engine.component, 100), open_device("cpu"))["velocity"])
        engine.close()
    np.testing.assert_array_equal(*results)
