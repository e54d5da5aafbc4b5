"""Byte-level byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2), by the `tokenizers` library. No text is unknown to it.

A token's name in the library's files is its bytes with each byte written as one printable character; `BYTES` undoes that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from model.tokenizer.base import Tokenizer, TokenizerError, utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

PROBE = "A b\n\n\té e\u0301 ﬁ① 中 🙂\r\n\x00 it's 1234  "
MIN_VOCAB = 256
SLICE = 1 << 20
"""Characters encoded at once: the library needs some hundred bytes for each token while it does so."""
SAFE_CUT = re.compile(r"(?<=\S\n)(?=\S)")
"""Where no token can reach across, whatever stands around it."""
LONGEST = 1024
LONG_RUN = re.compile(rf"(?<!\w)\w{{{LONGEST + 1},}}|(?<![^\w\s])[^\w\s]{{{LONGEST + 1},}}|(?<!\s)\s{{{LONGEST + 1},}}")
"""What no language has; the library needs seconds for one word of 80,000 letters, so such a run is encoded in parts of ``LONGEST``."""


def printable_bytes() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for the characters from U+0100 on, in order."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = printable_bytes()


class BPETokenizer(Tokenizer):
    """Wraps the library's tokenizer. Raises TokenizerError unless any text goes through it and comes back unchanged."""

    kind = "bpe"

    def __init__(self, library: Library) -> None:
        import tokenizers

        self.library = library
        self.version = f"tokenizers-{tokenizers.__version__}"
        super().__init__(token_bytes(library))
        if missing := [byte for byte in range(256) if bytes([byte]) not in self.tokens]:
            raise TokenizerError(f"the BPE vocabulary has no token for the byte {missing[0]:#04x}: only byte-level BPE can be used")
        if library.normalizer is not None or self.decode(self.encode(PROBE)) != PROBE:
            raise TokenizerError("this BPE changes the text that it encodes (a normalizer or a prefix space); that cannot be used")

    @classmethod
    def from_text(cls, text: str, vocab_size: int) -> Self:
        """Trained on a text: ``vocab_size`` tokens, fewer where the text has no more pairs to merge. Raises TokenizerError below 256."""
        return cls.from_chunks([text], vocab_size)

    @classmethod
    def from_chunks(cls, chunks: Iterable[str], vocab_size: int) -> Self:
        """The same, of a text that comes in parts."""
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size < MIN_VOCAB:
            raise TokenizerError(f"byte-level BPE has at least {MIN_VOCAB} tokens, the bytes: {vocab_size} are too few")
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        library.train_from_iterator(slices(chunks), trainer)
        return cls(library)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        utf8(self, text)  # the library would fail on a surrogate with an error of its own
        return [i for part in slices([text]) for i in self.library.encode(part, add_special_tokens=False).ids]

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`: the library's own JSON, under ``tokenizer``."""
        return {"kind": self.kind, "tokenizer": json.loads(self.library.to_str())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """See `Tokenizer`."""
        from tokenizers import Tokenizer as Library

        try:
            library = Library.from_str(json.dumps(data.get("tokenizer")))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"no BPE that the tokenizers library reads: {error}") from None
        library.no_truncation()
        library.no_padding()
        return cls(library)


def token_bytes(library: Library) -> list[bytes]:
    """The bytes of each token. Raises TokenizerError for a hole in the ids, or a token that is not byte-level."""
    added = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
    tokens = []
    for i in range(library.get_vocab_size()):
        name = library.id_to_token(i)
        if name is None:
            raise TokenizerError(f"the BPE vocabulary has no token {i}: ids must be 0, 1, 2, …")
        if i in added:
            tokens.append(added[i].encode())
        elif all(c in BYTES for c in name):
            tokens.append(bytes([BYTES[c] for c in name]))
        else:
            raise TokenizerError(f"the BPE token {name!a} is not byte-level: only byte-level BPE can be used")
    return tokens


def slices(chunks: Iterable[str]) -> Iterator[str]:
    """A text, which may come in parts, in parts that are encoded as they would be together, but for runs longer than ``LONGEST``."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        begin = 0
        while len(rest) - begin > SLICE and (cut := SAFE_CUT.search(rest, begin + SLICE)):
            yield from bounded(rest[begin : cut.start()])
            begin = cut.start()
        rest = rest[begin:]
        if len(rest) > 8 * SLICE:  # one line without an end: cut it anywhere
            yield from bounded(rest)
            rest = ""
    yield from bounded(rest)


def bounded(text: str) -> Iterator[str]:
    """A text cut inside its long runs."""
    begin = 0
    for run in LONG_RUN.finditer(text):
        for cut in range(run.start() + LONGEST, run.end(), LONGEST):
            yield text[begin:cut]
            begin = cut
    yield text[begin:]
