"""Trains a SentencePiece model that gives back every text as it was, and codes indentation in few tokens.

Nothing is normalised, no space is added or taken away, and what has no piece is spelled in bytes. Two characters need
help, since SentencePiece's trainer gives them a meaning of its own: a space may only begin a piece, so "\\n" and the
indentation after it could never be one; and a tab parts its fields. Both have a stand-in while the model is trained,
which gives pieces such as ":\\n        " and "\\t\\t": 10 % fewer tokens on Python sources (4,096 pieces). Letters and
punctuation never share a piece, and every digit is one of its own, as in many models' tokenizers; so the trainer gets
the words of the text, each once and with its count, and works on megabytes where the text has gigabytes.

    Kudo and Richardson, "SentencePiece" (2018); Sennrich et al., BPE (2016); Kudo, unigram (2018)
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from data.records import CHAT_COLUMNS, Record, normalise
from data.sentencepiece_tokenizer import LOSSLESS, SentencePieceTokenizer
from data.tokenizer_config import TokenizerConfig
from errors import InputError

LAYOUT_SPACE, TAB = "\ue000", "\ue001"
"""stand-ins, from Unicode's private use area: a space that is not one between two words, and a tab"""
_NO_LETTERS = dict.fromkeys(map(ord, f"{LAYOUT_SPACE}{TAB}▁▅\0"))  # SentencePiece's own signs: always spelled in bytes
_LAYOUT = re.compile(r" {2,}|(?<=[\n\t]) | (?=[\n\t])")
# Coarser than what SentencePiece's trainer allows in a piece, which also tells scripts beyond ASCII apart. It counts
# places in a word with 16 bits: hence the longest length.
_OTHER = rf"[^\x00-\x7f\d{LAYOUT_SPACE}{TAB}]"
_WORD = re.compile(rf"\d| ?(?:[A-Za-z]|{_OTHER}){{1,256}}| ?(?:(?![A-Za-z\d ]|{_OTHER})[\s\S]){{1,256}}| ")
_SPARE = 64  # pieces trained beyond those asked for: some are the same once the stand-ins are gone
_NORMAL = 1  # ModelProto.SentencePiece.Type


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_type: str = "bpe") -> SentencePieceTokenizer:
    """A tokenizer of exactly `vocab_size` pieces, <unk> 0, <s> 1 and </s> 2 and 256 bytes among them.

    `model_type` is bpe or unigram. The same texts give the same model. Raises InputError where the texts have too few
    different pieces, or too many letters, for `vocab_size`.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(_train(count_words(texts), vocab_size + _SPARE, model_type))
    _take_stand_ins_away(model)
    _shorten(model, vocab_size)
    model.normalizer_spec.name = LOSSLESS
    return SentencePieceTokenizer(model.SerializeToString(), TokenizerConfig(source="the trained model"))


def _train(words: Counter[str], vocab_size: int, model_type: str) -> bytes:
    """The serialized model; it may have fewer pieces than asked for."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items()), input_format="tsv",
            model_writer=model, model_type=model_type, vocab_size=vocab_size,
            hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            required_chars="▁",  # a text without spaces would give a model that cannot write one
            num_threads=16,  # a fixed number: sums over threads, and so the pieces, depend on it
            minloglevel=2)
    except RuntimeError as error:
        raise InputError(_reason(str(error), vocab_size)) from None
    return model.getvalue()


def _reason(message: str, vocab_size: int) -> str:
    """SentencePiece's words for what the user can mend."""
    letters = re.search(r"required_chars\. \d+ vs (\d+)", message)
    if letters:
        return _too_small(vocab_size - _SPARE, int(letters[1]))
    if "sentences_.empty()" in message:
        return "the rows hold no text to train a tokenizer on; give rows with some"
    return f"SentencePiece cannot train on this text ({' '.join(message.split())}); change the text or --model-type"


def _too_small(vocab_size: int, needed: int) -> str:
    return (f"--vocab-size {vocab_size} is too small: the bytes and the letters of the text alone are {needed}; "
            f"give several times as many")


def count_words(texts: Iterable[str]) -> Counter[str]:
    """The words of the texts, each with the one space before it, and what lies between; with stand-ins."""
    counts = Counter()
    for text in texts:
        text = text.translate(_NO_LETTERS)
        text = _LAYOUT.sub(lambda spaces: LAYOUT_SPACE * len(spaces[0]), text).replace("\t", TAB)
        counts.update(_WORD.findall(text))
    return counts


def _take_stand_ins_away(model: Any) -> None:
    """Renames the pieces; of those that are now the same, the first, which is the more frequent, stays."""
    pieces = {}
    for piece in model.pieces:
        piece.piece = piece.piece.replace(LAYOUT_SPACE, "▁").replace(TAB, "\t")
        pieces.setdefault(piece.piece, piece)
    _set_pieces(model, list(pieces.values()))


def _shorten(model: Any, vocab_size: int) -> None:
    """Drops the last, which are the rarest, pieces of several letters: for BPE the same as fewer merges."""
    if len(model.pieces) < vocab_size:
        raise InputError(f"--vocab-size {vocab_size} is more than the text has pieces for; give at most "
                         f"{len(model.pieces)}, or more text")
    droppable = [i for i, piece in enumerate(model.pieces) if piece.type == _NORMAL and len(piece.piece) > 1]
    kept = vocab_size - (len(model.pieces) - len(droppable))
    if kept < 0:
        raise InputError(_too_small(vocab_size, vocab_size - kept))
    dropped = set(droppable[kept:])
    _set_pieces(model, [piece for i, piece in enumerate(model.pieces) if i not in dropped])
    model.trainer_spec.vocab_size = vocab_size


def _set_pieces(model: Any, pieces: list[Any]) -> None:
    kept = [type(piece).FromString(piece.SerializeToString()) for piece in pieces]
    del model.pieces[:]
    model.pieces.extend(kept)


def sample_texts(source: Any, max_bytes: int, seed: int, track: Callable[[Any], Any] = iter) -> list[str]:
    """Texts of rows drawn at random without repetition, until they are `max_bytes` of UTF-8 or all; the last is cut.

    `track` may draw a progress bar. Raises InputError, naming the place, for a bad row, and where there is no text.
    """
    texts, left = [], max_bytes
    for index in track(np.random.default_rng(seed).permutation(len(source)).tolist()):
        for text in _row_texts(source, index):
            encoded = text.encode()
            texts.append(text if len(encoded) <= left else encoded[:left].decode(errors="ignore"))
            left -= len(encoded)
            if left <= 0:
                return texts
    if left == max_bytes:
        raise InputError("the rows hold no text to train a tokenizer on; give rows with some")
    return texts


def _row_texts(source: Any, index: int) -> list[str]:
    record = source[index]
    try:
        texts = record_texts(record)
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{source.place(index)}: text that is not valid Unicode; mend or remove the row") from None
    except InputError as error:
        raise InputError(f"{source.place(index)}: {error}") from None
    return texts


def record_texts(record: Record) -> list[str]:
    """The strings of a row: `text`, else its chats' contents, prompts, completions, chosen and rejected answers."""
    record = normalise(record)
    tokens = [name for name in record if name == "tokens" or name.endswith("_tokens")]
    if tokens:
        raise InputError(f"the row has {tokens[0]}, and no tokenizer can be trained on tokens; give rows of text")
    columns = ["text"] if "text" in record else [name for name in CHAT_COLUMNS if name in record]
    if not columns:
        raise InputError(f"no known columns among {', '.join(sorted(record))}; a row has text, messages, "
                         f"or prompt and completion")
    return [text for name in columns for text in _strings(record[name], name)]


def _strings(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        return [value]
    if name == "text" or not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InputError(f"{name} must be a string{'' if name == 'text' else ' or a list of messages'}, "
                         f"not {type(value).__name__}")
    contents = [message.get("content") for message in value]
    return [content for content in contents if isinstance(content, str)]  # None beside a tool call


def bytes_per_token(tokenizer: Any, texts: Iterable[str]) -> float:
    """Bytes of UTF-8 for each token, over all the texts."""
    counts = [(len(text.encode()), len(tokenizer.encode(text))) for text in texts]
    total_bytes, total_tokens = map(sum, zip(*counts))
    return total_bytes / max(total_tokens, 1)

