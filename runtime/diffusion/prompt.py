"""Prompts: text, with the words that a model was tuned with -> token ids as CLIP's tokenizer gives them."""

from __future__ import annotations

import functools
import html
import warnings
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
import tokenizers

from v2v.core.configs import CLIP_CONTEXT, CLIP_VOCABULARY, ModelConfig, Words
from v2v.core.errors import EngineError
from v2v.core.files import read_limited
from v2v.engine.store import packaged_tokenizer

_LARGEST = 16 << 20  # bytes
START, END = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1


class PromptCut(UserWarning):
    """A prompt was longer than the text encoder's context; the message shows what was cut."""


def clean(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities (twice), collapse white space, lower-case, as CLIP does."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _byte_pairs() -> tokenizers.Tokenizer:
    """CLIP's, which takes a sixth of a second to read; nothing changes it afterwards."""
    return tokenizers.Tokenizer.from_str(packaged_tokenizer().decode())


class Tokenizer:
    """CLIP's byte-pair tokenizer, read from an engine set's ``tokenizer.json``, and a model's constant ``words``.

    Raises:
        EngineError: the file is missing, or is not what a build writes.
    """

    def __init__(self, path: Path, words: Words = ModelConfig.words) -> None:
        self._words = words
        expected = packaged_tokenizer()
        try:
            content = read_limited(path, _LARGEST)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{path}: no tokenizer can be read from it ({error}); rebuild the engine set"
            ) from error
        # The library believes what it reads: a file that is not what a build writes can end the process.
        if content != expected:
            raise EngineError(f"{path}: is not the tokenizer that v2v puts there; rebuild the engine set")
        self._bpe = _byte_pairs()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids ``[1, 77]``: start, words, end, then zeros. Longer text is cut silently, its end kept.

        CLIP's own padding is zero, which is a token like any other ("!"), and the reference's text encoder
        sees it: there is no padding mask.
        """
        tokens = self._bpe.encode(clean(text)).ids[: CLIP_CONTEXT - 2]
        ids = np.zeros((1, CLIP_CONTEXT), np.int64)
        ids[0, : len(tokens) + 2] = [START, *tokens, END]
        return ids

    def positive(self, text: str, *, parity: bool = False) -> npt.NDArray[np.int64]:
        """Token ids ``[1, 77]`` of the user's text followed by the model's quality words.

        Where both do not fit, quality words give way, last phrase first; the user's own words are cut only
        where they alone are too long. In parity mode there is no space between the two, and the line is cut at token 77
        wherever that falls, as the reference does. Either cut is a :class:`PromptCut` warning.
        """
        text = text or self._words.usual
        apart = "" if parity or not text or self._words.positive.startswith(",") else ", "
        caption = text + apart + self._words.positive
        if parity or self._cut_off(text):
            return self._encode_and_tell(caption if parity else text, "prompt")
        fitting = caption
        while self._cut_off(fitting):
            fitting = fitting.rpartition(",")[0]
        if fitting != caption:
            _tell(f"the prompt leaves no room for these quality words: {_quote(caption[len(fitting) :])}")
        return self.encode(fitting)

    def negative(self, text: str | None = None) -> npt.NDArray[np.int64]:
        """Token ids ``[1, 77]`` of the negative prompt; the model's own where ``text`` is None."""
        return self._encode_and_tell(self._words.negative if text is None else text, "negative prompt")

    def _encode_and_tell(self, text: str, name: str) -> npt.NDArray[np.int64]:
        if cut := self._cut_off(text):
            _tell(f"the {name} is longer than {CLIP_CONTEXT - 2} tokens; cut from its end: {_quote(cut)}")
        return self.encode(text)

    def _cut_off(self, text: str) -> str:
        """The end of the cleaned ``text`` that does not fit, empty where everything does."""
        text = clean(text)
        starts = [start for start, _ in self._bpe.encode(text).offsets]
        return text[starts[CLIP_CONTEXT - 2] :] if len(starts) > CLIP_CONTEXT - 2 else ""


def _quote(text: str) -> str:
    return "'" + text.strip(" ,") + "'"


def _tell(message: str) -> None:
    warnings.warn(message, PromptCut, stacklevel=4)
