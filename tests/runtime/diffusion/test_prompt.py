"""Prompts become exactly the reference's token ids, and nothing of them is lost silently."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from v2v.core.configs import ModelConfig
from v2v.core.errors import EngineError
from v2v.engine.store import packaged_tokenizer
from v2v.runtime.diffusion.prompt import (
    CLIP_CONTEXT,
    END,
    PromptCut,
    Tokenizer,
)

WORDS = ModelConfig.words
GOLDEN = json.loads(
    (Path(__file__).parents[2] / "data" / "golden" / "tokenizer.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(packaged_tokenizer())
    return Tokenizer(path)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: ascii(case["text"][:20]))
def test_tokens_equal_the_reference(tokenizer: Tokenizer, case: dict) -> None:
    assert tokenizer.encode(case["text"]).tolist() == [case["ids"]]


def test_the_prompts_of_the_reference_have_their_known_sums(tokenizer: Tokenizer) -> None:
    assert (len(WORDS.positive), len(WORDS.negative)) == (297, 234)
    assert tokenizer.positive("").sum() == 543517
    assert tokenizer.negative().sum() == 482490


def test_a_short_prompt_is_followed_by_all_quality_words_without_a_warning(tokenizer: Tokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenizer.positive("a rabbit")
    assert ids.tolist() == tokenizer.encode("a rabbit" + WORDS.positive).tolist()


def test_quality_words_give_way_to_the_users_words_phrase_by_phrase(tokenizer: Tokenizer) -> None:
    text = "a large grey rabbit wakes up in a meadow, stretches and yawns, birds pass by"
    with pytest.warns(PromptCut, match=r"'unreal engine 5, 4k render'|'Unreal Engine 5, 4k render'"):
        ids = tokenizer.positive(text)
    kept = text + WORDS.positive.removesuffix(", Unreal Engine 5, 4k render")
    assert ids.tolist() == tokenizer.encode(kept).tolist()


def test_in_parity_mode_the_line_is_cut_at_the_last_token(tokenizer: Tokenizer) -> None:
    text = "a large grey rabbit wakes up in a meadow, stretches and yawns, birds pass by"
    with pytest.warns(PromptCut, match="render"):
        ids = tokenizer.positive(text, parity=True)
    assert ids.tolist() == tokenizer.encode(text + WORDS.positive).tolist()
    assert ids[0, -1] == END


def test_a_prompt_that_is_too_long_by_itself_tells_what_was_cut(tokenizer: Tokenizer) -> None:
    text = "word " * (CLIP_CONTEXT - 2) + "one two"
    with pytest.warns(PromptCut, match="'one two'"):
        ids = tokenizer.positive(text)
    assert ids.tolist() == tokenizer.encode(text).tolist()
    with pytest.warns(PromptCut, match="negative prompt .*'one two'"):
        tokenizer.negative(text)


def test_a_prompt_that_just_fits_is_not_cut(tokenizer: Tokenizer) -> None:
    text = " ".join(["word"] * (CLIP_CONTEXT - 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.count_nonzero(tokenizer.negative(text)) == CLIP_CONTEXT


def test_a_damaged_tokenizer_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(EngineError, match=r"tokenizer\.json.*rebuild"):
        Tokenizer(path)
    path.write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json.*rebuild"):
        Tokenizer(path)


def test_a_tokenizer_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    """The library aborts where a prefix is said of words that have none."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(
        packaged_tokenizer().replace(b'"continuing_subword_prefix":null', b'"continuing_subword_prefix":"a"')
    )
    assert path.read_bytes() != packaged_tokenizer()
    with pytest.raises(EngineError, match=r"tokenizer\.json.*rebuild"):
        Tokenizer(path)
