"""What earlier versions built is read and identified as before models could take pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from v2v.core.components import window_for
from v2v.core.configs import MODELS, facts_of
from v2v.engine.manifest import Manifest
from v2v.export import packaged

STORED = json.loads((Path(__file__).parents[1] / "data" / "manifest_before_pictures.json").read_text())


RECIPE = Manifest.from_json(json.dumps(STORED["manifest"])).recipe


def test_a_stored_manifest_is_identified_as_it_was() -> None:
    assert RECIPE.window == window_for(RECIPE.model)
    assert RECIPE.identity == STORED["identity"]
    assert RECIPE.name == STORED["name"]


def test_what_identifies_a_model_is_as_it_was() -> None:
    described = json.loads(json.dumps(RECIPE.model.to_json()))
    assert described == STORED["manifest"]["recipe"]["model"]
    assert facts_of(MODELS["ms-image2video"])["unet"]["row_padding"] == 1


def test_random_weights_are_those_of_before() -> None:
    weights = pytest.importorskip("v2v.export.weights")
    identity = weights.load_weights("random:0", RECIPE.model).identity
    assert identity == STORED["manifest"]["recipe"]["weights"]["identity"]


def test_packaged_graphs_still_fit_their_model() -> None:
    model = MODELS["small"]
    source = str(packaged.FOLDER / "small.safetensors")
    assert packaged.fits(model, source, window_for(model), "fp32")
