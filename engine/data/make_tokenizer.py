"""Make ``tokenizer.json.xz`` from CLIP's list of merges, ``bpe_simple_vocab_16e6.txt.gz``.

    python engine/data/make_tokenizer.py PATH/TO/bpe_simple_vocab_16e6.txt.gz

The list comes with the MIT-licensed packages ``clip`` and ``open_clip_torch``. The result is a
file for the ``tokenizers`` library; cleaning, lower-casing and padding stay with the caller.
"""

from __future__ import annotations

import gzip
import lzma
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

VOCABULARY = 49408
SPECIAL = ("<start_of_text>", "<end_of_text>")
END_OF_WORD = "</w>"
# One match is one word; what no branch matches (white space) is dropped. Digits stand alone.
WORDS = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order of the vocabulary: printable bytes first.

    Printable Latin-1 bytes stand for themselves, the others for the code points from 256 on (GPT-2's table).
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def make_tokenizer(merges_file: Path) -> Tokenizer:
    """Build the tokenizer: bytes, bytes that end a word, merges, the two special tokens."""
    lines = gzip.decompress(merges_file.read_bytes()).decode("utf-8").splitlines()
    alphabet = byte_alphabet()
    count = VOCABULARY - 2 * len(alphabet) - len(SPECIAL)
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : 1 + count])]
    tokens = [*alphabet, *(c + END_OF_WORD for c in alphabet), *(a + b for a, b in merges), *SPECIAL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == VOCABULARY

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END_OF_WORD))
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


if __name__ == "__main__":
    text = make_tokenizer(Path(sys.argv[1])).to_str()
    packed = lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)
    Path(__file__).with_name("tokenizer.json.xz").write_bytes(packed)
