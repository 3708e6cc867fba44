"""Text to tokens and back, from a model folder; called by `engine` for every request.

Uses the `tokenizers` library and jinja2 directly: importing `transformers` takes seconds.
Invariant: the concatenated output of a Detokenizer is the decoding of all tokens fed to it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from giusto.core.errors import InvalidRequest, ModelError
from giusto.engine.chat import ChatTemplate
from giusto.engine.config import read_json

_SPACE_MARK = "▁"  # SentencePiece writes a space so
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """The tokenizer and chat template of one model folder."""

    def __init__(self, folder: str | Path) -> None:
        """Read `tokenizer.json`, `tokenizer_config.json` and the chat template.

        Raises:
            ModelError: a missing or broken file, or a tokenizer of an unknown kind.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        raw = read_json(path)
        try:
            self._rust = RustTokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is not a tokenizer ({error}); download it again.") from error
        self._rust.no_truncation()
        self._rust.no_padding()
        self._special = {
            index for index, token in self._rust.get_added_tokens_decoder().items() if token.special
        }
        decoders = _decoders(raw.get("decoder"))
        self._byte_level = "ByteLevel" in decoders
        if not self._byte_level and not decoders.keys() & {"ByteFallback", "Metaspace"}:
            raise ModelError(
                f"{path} has a decoder that is neither byte-level nor SentencePiece's; "
                "use a model of the Llama, Qwen or Mistral families."
            )
        # SentencePiece puts a space before a text and takes it off again after decoding.
        mark = decoders.get("Metaspace", {"prepend_scheme": "never"})
        self.strips_first_space = "Strip" in decoders or mark.get("prepend_scheme") != "never"
        self._chat = ChatTemplate.read(folder)

    @property
    def vocab_size(self) -> int:
        """Tokens that have a text; the model's own vocabulary may be padded beyond it."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """A hash of the vocabulary: models that have it in common mean the same by an id."""
        tokens = sorted(self._rust.get_vocab(with_added_tokens=True).items())
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokenise a text; special tokens written out in it become those tokens.

        A rendered chat has its special tokens already: pass add_special_tokens=False for it.
        """
        check_text(text)
        return self._rust.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of tokens; ids beyond the vocabulary have none."""
        return self._rust.decode(list(ids), skip_special_tokens=skip_special)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is markup (such as an end of turn) and not text."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one token stands for; may be part of a UTF-8 character."""
        piece = self._rust.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            try:
                return bytes(_BYTE_OF[char] for char in piece)
            except KeyError:
                return piece.encode()
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(_SPACE_MARK, " ").encode()

    def token_text(self, token_id: int) -> str:
        """Return one token as text; bytes that are no whole character show as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render messages with the folder's chat template; `kwargs` are further variables of it.

        Raises:
            InvalidRequest: no template, or the template refuses these messages.
        """
        if self._chat is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions instead", param="messages"
            )
        variables = {"add_generation_prompt": add_generation_prompt, "tools": tools} | kwargs
        text = self._chat.render(messages, variables)
        check_text(text)
        return text


class Detokenizer:
    """Turns a growing list of tokens into text, never emitting part of a character.

    Every token of the supported kinds stands for fixed bytes, so one incremental UTF-8 decoder
    holds back exactly the bytes of a character that is not complete yet. O(1) per token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special: bool = True,
        continues_text: bool = False,
    ) -> None:
        """Start with no tokens.

        Args:
            continues_text: the tokens continue a prompt, so a first space belongs to the text.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.strips_first_space and not continues_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: int | Iterable[int]) -> str:
        """Add tokens and return the text that they complete, which may be empty."""
        ids = (token_ids,) if isinstance(token_ids, int) else token_ids
        tokenizer = self._tokenizer
        data = b"".join(
            tokenizer.token_bytes(token_id)
            for token_id in ids
            if not (self._skip_special and tokenizer.is_special(token_id))
        )
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for the bytes of an unfinished character."""
        return self._utf8.decode(b"", final=True)


def check_text(text: str) -> None:
    """Refuse text that is not Unicode: JSON can carry half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the text has an unpaired surrogate at character {error.start}; send valid Unicode"
        ) from None


def _decoders(decoder: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of a decoder and of those inside it, by type."""
    if not isinstance(decoder, dict):
        return {}
    found = {str(decoder.get("type")): decoder}
    for part in decoder.get("decoders", []):
        found |= _decoders(part)
    return found


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for (the GPT-2 alphabet).

    Printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
