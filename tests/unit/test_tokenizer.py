"""Tokenizer, chat template and incremental detokeniser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers

from giusto.core.errors import InvalidRequest, ModelError
from giusto.engine.tokenizer import Detokenizer, Tokenizer
from tiny_models import CHAT_TEMPLATE, VOCAB_SIZE, write_json, write_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte_level")
    write_tokenizer(folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory) -> Tokenizer:
    """A tokenizer in the manner of Llama 2: marked spaces, and bytes for what it does not know."""
    folder = tmp_path_factory.mktemp("sentence_piece")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdehilorstw", "he", "▁t", "▁the", "é"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he")]
    rust = RustTokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rust.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(params=["byte_level", "sentence_piece"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def increments(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*map(detokenizer.feed, ids), detokenizer.flush()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_increments_of_text_join_to_it(tokenizer: Tokenizer, text: str) -> None:
    """Whatever the text, the increments of its tokens join to it."""
    assert text == "".join(increments(tokenizer, tokenizer.encode(text), skip_special=False))


@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 3), max_size=40), skip=st.booleans())
def test_increments_of_any_tokens_join_to_their_decoding(
    byte_level: Tokenizer, ids: list[int], skip: bool
) -> None:
    """Tokens that are no valid UTF-8, and ids beyond the vocabulary, decode as in one go."""
    expected = byte_level.decode(ids, skip_special=skip)
    assert expected == "".join(increments(byte_level, ids, skip_special=skip))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, sizes=st.lists(st.integers(1, 5), min_size=1))
def test_several_tokens_at_once_are_the_same(tokenizer: Tokenizer, text: str, sizes) -> None:
    """Feeding several tokens at a time gives the same text."""
    ids, detokenizer, parts = tokenizer.encode(text), Detokenizer(tokenizer), []
    for turn in range(len(ids)):
        size = sizes[turn % len(sizes)]
        parts.append(detokenizer.feed(ids[:size]))
        ids = ids[size:]
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(parts) + detokenizer.flush()


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    """No increment ends inside a character; the whole comes with its last byte."""
    ids = tokenizer.encode("a👍b")
    parts = increments(tokenizer, ids)
    assert [part for part in parts if part] == ["a", "👍", "b"]
    assert len(ids) > 3


def test_an_unfinished_character_shows_at_the_end(byte_level: Tokenizer) -> None:
    """What is left of a character when generation ends is one U+FFFD."""
    ids = byte_level.encode("a👍")[:-1]
    assert increments(byte_level, ids) == ["a", "", "", "", "\ufffd"]


def test_continued_text_keeps_its_first_space(sentence_piece: Tokenizer) -> None:
    """A completion that goes on after a prompt keeps the space between the two."""
    ids = sentence_piece.encode("the other")
    assert "".join(increments(sentence_piece, ids)) == "the other"
    assert "".join(increments(sentence_piece, ids, continues_text=True)) == " the other"


def test_token_bytes_join_to_the_text(byte_level: Tokenizer) -> None:
    """The bytes of single tokens join to those of the text, split characters included."""
    text = "naïve 👍 text"
    ids = byte_level.encode(text)
    assert text.encode() == b"".join(map(byte_level.token_bytes, ids))
    assert byte_level.token_bytes(VOCAB_SIZE) == b""
    assert "\ufffd" in [byte_level.token_text(token) for token in ids]


def test_special_tokens_are_text_only_when_asked(byte_level: Tokenizer) -> None:
    """Markup is one token, and is left out of the text by default."""
    ids = byte_level.encode("a<|im_end|>b")
    assert len(ids) == 3
    assert byte_level.is_special(ids[1])
    assert byte_level.decode(ids) == "ab"
    assert byte_level.decode(ids, skip_special=False) == "a<|im_end|>b"
    assert byte_level.token_text(ids[1]) == "<|im_end|>"


def test_surrogates_are_refused(byte_level: Tokenizer) -> None:
    """Half a surrogate pair, which JSON can carry, is the client's error."""
    with pytest.raises(InvalidRequest, match="unpaired surrogate at character 1"):
        byte_level.encode("a\ud800")
    with pytest.raises(InvalidRequest, match="unpaired surrogate"):
        byte_level.render_chat([{"role": "user", "content": "\udfff"}])


def test_chat_is_rendered(byte_level: Tokenizer) -> None:
    """The template of the folder turns messages into the model's markup."""
    expected = "<|im_start|>user\nHi<|im_end|>\n"
    assert expected == byte_level.render_chat(CHAT, add_generation_prompt=False)
    assert expected + "<|im_start|>assistant\n" == byte_level.render_chat(CHAT)


def with_template(folder: Path, template: object) -> Tokenizer:
    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", config | {"chat_template": template})
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for %}", "template is broken"),
        ("{% break %}", "template is broken"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),
        ("{{ ''.__class__.__mro__ }}", "cannot render"),
    ],
)
def test_bad_templates_are_the_requests_error(tmp_path, template, message) -> None:
    """A missing, broken, refusing or unsafe template fails the chat, not the server."""
    tokenizer = with_template(tmp_path, template)
    with pytest.raises(InvalidRequest, match=message):
        tokenizer.render_chat(CHAT)
    assert tokenizer.encode("still works")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages | tojson }}", '<|endoftext|>[{"role": "user", "content": "H'),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}", "u"),
        ("{% for m in messages %}{% break %}{% endfor %}x", "x"),
        ("{{ tools[0].name }} {{ mood }}", "look-up calm"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ([{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}], "b"),
    ],
)
def test_what_templates_may_use(tmp_path, template, expected) -> None:
    """Templates have the variables, filters and statements that Hugging Face documents."""
    tokenizer = with_template(tmp_path, template)
    text = tokenizer.render_chat(CHAT, tools=[{"name": "look-up"}], mood="calm")
    assert text.startswith(expected)


def test_the_template_file_comes_first(tmp_path: Path) -> None:
    """`chat_template.jinja` is used before the entry of `tokenizer_config.json`."""
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("file " + CHAT_TEMPLATE)
    assert Tokenizer(tmp_path).render_chat(CHAT).startswith("file <|im_start|>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json is missing"),
        ("{", "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"version": "1.0"}', "is not a tokenizer"),
    ],
)
def test_a_broken_tokenizer_fails_at_start(tmp_path: Path, content, message) -> None:
    """A missing or broken tokenizer.json is told in one sentence that names it."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=message) as error:
        Tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    """A tokenizer whose tokens do not stand for fixed bytes is refused at start."""
    rust = RustTokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    rust.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="neither byte-level nor SentencePiece"):
        Tokenizer(tmp_path)
