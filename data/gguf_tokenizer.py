"""The tokenizer in a GGUF file: byte-level BPE (`tokenizer.ggml.model` = gpt2) as a `tokenizers.Tokenizer`.

GGUF stores vocabulary and merges, and names the regular expressions that split a text before BPE
(`tokenizer.ggml.pre`). They are those of llama.cpp's llama-vocab.cpp and of the models' own tokenizer.json.
The metadata are read here with `struct`: gguf.GGUFReader makes a numpy array of every string, which takes ten
times as long. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from data.tokenizer_config import TokenizerConfig
from errors import InputError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A text is split by each expression in turn; digits come one by one (smollm, qwen2) or by threes (llama-bpe).
SPLITS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "llama-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
    "smollm": [r"\p{N}", _GPT2],
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_gguf_tokenizer(path: Path) -> tuple[Any, TokenizerConfig]:
    """The `tokenizers.Tokenizer` and the special tokens of a GGUF file."""
    metadata = read_metadata(path)
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    model, pre = fields.get("model"), fields.get("pre", "default")
    if model != "gpt2":
        raise InputError(f"{path}: tokenizer model {model!r} is not supported; supported: 'gpt2' (BPE)")
    if pre not in SPLITS:
        raise InputError(f"{path}: pre-tokenizer {pre!r} is not supported; supported: {', '.join(SPLITS)}")
    for key in ("tokens", "token_type", "merges", "eos_token_id"):
        if key not in fields:
            raise InputError(f"{path}: no tokenizer.ggml.{key} in it; use a file with a complete tokenizer")
    return _build(fields, path), _config(fields, metadata.get("tokenizer.chat_template"), path)


def _build(fields: dict[str, Any], path: Path):
    """Pre-tokenizer, BPE, added tokens and BOS, as the model's own tokenizer.json has them."""
    from tokenizers import Tokenizer, decoders, normalizers

    pre = fields.get("pre", "default")
    backend = Tokenizer(_bpe(fields, path, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(SPLITS[pre])
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, fields["tokens"], fields["token_type"])
    backend.post_processor = _post_processor(fields, add_bos=pre == "llama-bpe")
    return backend


def _bpe(fields: dict[str, Any], path: Path, ignore_merges: bool):
    """Byte-level BPE; with `ignore_merges` a word that is a token stays whole, whatever the merges say."""
    from tokenizers import models

    vocab = {token: i for i, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    try:
        return models.BPE(vocab, merges, ignore_merges=ignore_merges)
    except Exception as error:  # the Rust side raises plain Exception
        raise InputError(f"{path}: merges that do not fit the tokens ({error}); fetch it again") from error


def _pre_tokenizer(patterns: list[str]):
    """What splits a text before BPE: each expression in turn, then bytes are written as letters."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level])


def _add_tokens(backend, tokens: list[str], types: tuple[int, ...]) -> None:
    """Control tokens are special (left out when decoding), user-defined ones only never split."""
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        texts = [token for token, of_kind in zip(tokens, types, strict=True) if of_kind == kind]
        backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def _post_processor(fields: dict[str, Any], add_bos: bool):
    """BOS before and EOS after a text where the file says so; where it is silent, llama.cpp's `add_bos`."""
    from tokenizers import processors

    before = _token(fields, "bos") if fields.get("add_bos_token", add_bos) else ""
    after = _token(fields, "eos") if fields.get("add_eos_token", False) else ""
    if not before and not after:
        return None
    single = [token for token in (before, "$A", after) if token]
    special = {token: fields["tokens"].index(token) for token in (before, after) if token}
    return processors.TemplateProcessing(single=single, special_tokens=list(special.items()))


def _config(fields: dict[str, Any], chat_template: str | None, path: Path) -> TokenizerConfig:
    """End of turn and end of message end generation as end of sequence does."""
    ends = [fields.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    return TokenizerConfig(
        source=str(path),
        eos_token=_token(fields, "eos"),
        bos_token=_token(fields, "bos"),
        pad_token=_token(fields, "padding"),
        chat_template=chat_template,
        end_ids=tuple(i for i in ends if i is not None),
    )


def _token(fields: dict[str, Any], name: str) -> str:
    """The text of a special token, "" where the file names none."""
    token_id = fields.get(f"{name}_token_id")
    return "" if token_id is None else fields["tokens"][token_id]


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file: numbers, booleans, strings, and lists or tuples of them."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _read_pairs(buffer)
    except (ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged or not a GGUF file ({reason}); fetch the file again") from error


def _read_pairs(buffer: mmap.mmap) -> dict[str, Any]:
    magic, version, _, count = struct.unpack_from("<4sIQQ", buffer)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"magic {magic!r}, version {version}")
    pairs, at = {}, 24
    for _ in range(count):
        key, at = _read_string(buffer, at)
        (kind,) = struct.unpack_from("<I", buffer, at)
        pairs[key], at = _read_value(buffer, at + 4, kind)
    return pairs


def _read_value(buffer: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """The value of type `kind` at byte `at`, and where the next one begins."""
    if kind == _STRING:
        return _read_string(buffer, at)
    if kind == _ARRAY:
        return _read_array(buffer, at)
    (value,) = struct.unpack_from("<" + _SCALARS[kind], buffer, at)
    return value, at + struct.calcsize("<" + _SCALARS[kind])


def _read_array(buffer: mmap.mmap, at: int) -> tuple[list | tuple, int]:
    kind, count = struct.unpack_from("<IQ", buffer, at)
    at += 12
    if kind in _SCALARS:
        layout = f"<{count}{_SCALARS[kind]}"
        return struct.unpack_from(layout, buffer, at), at + struct.calcsize(layout)
    values = []
    for _ in range(count):
        value, at = _read_value(buffer, at, kind)
        values.append(value)
    return values, at


def _read_string(buffer: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", buffer, at)
    end = at + 8 + length
    return buffer[at + 8 : end].decode("utf-8"), end
