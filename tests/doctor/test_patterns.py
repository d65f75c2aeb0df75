"""Patterns are a model's own blocks, at the widths and on the maps that they have there."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any

import pytest

from v2v.core.components import component, window_for
from v2v.core.configs import MODELS
from v2v.core.samples import sample_inputs
from v2v.doctor.patterns import LARGEST_LOGIT, map_sizes, patterns, scaled, weights_of

FULL = MODELS["ms-vid2vid-xl"]


def test_levels_have_the_maps_and_widths_of_the_full_model() -> None:
    assert map_sizes(FULL, window_for(FULL)) == [(90, 160), (46, 80), (24, 40), (13, 20)]
    levels = sorted(
        (p for p in patterns(FULL, window_for(FULL)) if p.level is not None), key=lambda p: p.level or 0
    )
    inputs = [component("unet", p.model, p.window, "fp16").inputs[0].shape for p in levels]
    assert inputs == [(1, 4, 32, *size) for size in ((90, 160), (46, 80), (24, 40), (13, 20))]
    assert [p.model.unet.width for p in levels] == [320, 640, 1280, 1280]
    assert [p.model.unet.attention for p in levels] == [(True,), (True,), (True,), (False,)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_patterns_of_everything_in_its_engine_sets(name: str) -> None:
    model = MODELS[name]
    found = patterns(model, window_for(model))
    first = "image_encoder" if model.takes_pictures else "text_encoder"
    assert {"unet", "vae_decoder", first} <= {pattern.component for pattern in found}
    assert len({pattern.name for pattern in found}) == len(found)
    assert [pattern.sharp for pattern in found].count(True) == 1
    for pattern in found:  # a window that its networks take
        component(pattern.component, pattern.model, pattern.window, "fp16")


@pytest.mark.parametrize("pattern", patterns(FULL, window_for(FULL)), ids=lambda pattern: pattern.name)
def test_they_are_scaled_frames_first_and_never_to_nothing(pattern: Any) -> None:
    windows = [*islice(scaled(pattern), 20)]
    sizes = [window.frames * window.height * window.width for window in windows]
    assert all(larger > smaller for larger, smaller in pairwise(sizes))
    if pattern.component == "unet":
        assert windows[0] == pattern.window
        assert [(w.height, w.width) for w in windows[:5]] == [(windows[0].height, windows[0].width)] * 5
        assert windows[-1].frames == 2


def test_a_sharp_pattern_has_the_logits_that_it_promises_and_tokens_attend_to_themselves() -> None:
    torch = pytest.importorskip("torch")
    import v2v.export.models.unet as unet

    model = MODELS["small"]
    (sharp,) = [pattern for pattern in patterns(model, window_for(model)) if pattern.sharp]
    *_, window = scaled(sharp)
    network = weights_of(sharp).load("unet")
    largest: list[float] = []
    plain = unet.attention

    def watched(q: Any, k: Any, v: Any, **options: Any) -> Any:
        if q.shape == k.shape and torch.equal(q, k):
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            largest.append(float(logits.max()))
            assert (logits.argmax(-1) == torch.arange(q.shape[-2])).float().mean() > 0.9
        return plain(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(unet, "attention", watched)
        inputs = sample_inputs(component("unet", sharp.model, window, "fp32"), 1)
        network(*map(torch.from_numpy, inputs.values()))
    assert largest
    assert LARGEST_LOGIT / 2 < max(largest) < 2 * LARGEST_LOGIT
