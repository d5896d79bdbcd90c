"""A SentencePiece model (tokenizer.model) as a `data.tokenizer.Tokenizer`.

SentencePiece itself never finds control symbols in a text: "</s>" written by a chat template would come out
as four letters. So the text is cut at control and user-defined symbols and at tokens added to the model
later; what lies between is encoded. SentencePiece writes a space, the "dummy prefix", before every text it
gets. Here, as in transformers, only the beginning of the whole text has it, or every part where
tokenizer_config.json says "legacy". Unlike in transformers, a text that begins with a space keeps it besides.
Inside, "▁" stands for a space, so a "▁" in the text would come back as one. A LOSSLESS model, which
data/tokenizer_training.py makes, has it spelled in bytes; others take it as the models they belong to learned it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.token_bytes import bytes_of_piece
from data.tokenizer_config import TokenizerConfig, find_eos, find_token, write_config
from errors import InputError

_CONTROL, _USER_DEFINED = 3, 4  # ModelProto.SentencePiece.Type
LOSSLESS = "lossless"
"""name of the normaliser of models that give back every text as it was; only SentencePiece's trainer reads it"""


class SentencePieceTokenizer:
    """`model` is the serialized model, which carries bos and eos; `config` may name others."""

    def __init__(self, model: bytes, config: TokenizerConfig):
        self._model, self._max_length = model, config.settings.get("model_max_length")
        proto = _parse(model, config.source)
        self._first = _processor(proto)
        self._prefix = proto.normalizer_spec.add_dummy_prefix
        proto.normalizer_spec.add_dummy_prefix = False
        self._inner = self._first if config.settings.get("legacy", False) else _processor(proto)
        self._added = _added_tokens(config, len(proto.pieces), self._find_piece)
        controls = _pieces(proto, _CONTROL)
        added = {text: token_id for text, (token_id, _) in self._added.items()}
        self._symbols = controls | _pieces(proto, _USER_DEFINED) | added
        self._texts = {token_id: text for text, token_id in self._symbols.items()}
        added_special = {token_id for token_id, special in self._added.values() if special}
        self._special = added_special | set(controls.values())
        self._spelled = {text: [token_id] for text, token_id in self._symbols.items()}
        if proto.normalizer_spec.name == LOSSLESS:
            self._spelled["▁"] = [self._first.piece_to_id(f"<0x{byte:02X}>") for byte in "▁".encode()]
        self._cut = _any_of(self._spelled)
        self.vocab_size = max(len(proto.pieces), *(token_id + 1 for token_id in self._texts), 1)
        self._look_up(config)

    def _look_up(self, config: TokenizerConfig) -> None:
        """Special tokens: those that the configuration names, else the model's own."""
        own_bos, own_eos = (i if i >= 0 else None for i in (self._first.bos_id(), self._first.eos_id()))
        named_bos = find_token(config.bos_token, self._find, config)
        self.bos_id = own_bos if named_bos is None else named_bos
        self.eos_id = find_eos(config, self._find, own_eos)
        self.eos_ids = tuple(sorted({self.eos_id, *config.end_ids}))
        self.bos_token = "" if self.bos_id is None else self._text(self.bos_id)
        self.eos_token = self._text(self.eos_id)
        self.pad_token = config.pad_token if self._find(config.pad_token) is not None else self.eos_token
        self.chat_template = config.chat_template
        self._add_bos = self.bos_id is not None and config.settings.get("add_bos_token", True)
        self._add_eos = config.settings.get("add_eos_token", False)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids = []
        for part, at in self._parts(text):
            ids += self._spelled.get(part) or self._encode_part(part, at, int)
        if not add_special_tokens:
            return ids
        before = [self.bos_id] if self._add_bos else []
        return before + ids + ([self.eos_id] if self._add_eos else [])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = [], []
        for part, at in self._parts(text):
            if part in self._spelled:
                part_ids = self._spelled[part]
                part_offsets = [(0, len(part))] * len(part_ids)
            else:
                encoding = self._encode_part(part, at, "offset_mapping")
                part_ids, part_offsets = encoding["ids"], self._widen(encoding["ids"], encoding["offsets"])
            ids += part_ids
            offsets += [(at + start, at + end) for start, end in part_offsets]
        return ids, offsets

    def _parts(self, text: str) -> Iterator[tuple[str, int]]:
        """Symbols and what lies between them, each with the place where it begins."""
        at = 0
        for part in self._cut.split(text):
            if part:
                yield part, at
            at += len(part)

    def _encode_part(self, part: str, at: int, out_type: Any) -> Any:
        try:
            return (self._inner if at else self._first).encode(part, out_type=out_type)
        except (RuntimeError, UnicodeEncodeError) as error:
            raise InputError(f"text that is not valid Unicode ({part[:40]!a}); mend or drop it") from error

    def _widen(self, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """SentencePiece gives a character's width to the last of its byte tokens alone: here each of them has it."""
        for i in range(len(ids) - 2, -1, -1):
            start, end = offsets[i]
            if start == end and self._first.is_byte(ids[i]):
                offsets[i] = (start, offsets[i + 1][1])
        return offsets

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        kept = [int(i) for i in ids if not (skip_special_tokens and int(i) in self._special)]
        text = ""
        for position, (is_symbol, group) in enumerate(itertools.groupby(kept, self._texts.__contains__)):
            processor = self._inner if position else self._first  # the one that wrote a space takes it off
            text += "".join(map(self._texts.get, group)) if is_symbol else _decode_part(group, processor)
        return text

    def token_bytes(self) -> list[bytes | None]:
        own = range(self._first.vocab_size())
        found = [bytes_of_piece(self._first.id_to_piece(token_id)) for token_id in own]
        found += [None] * (self.vocab_size - len(found))
        for token_id, text in self._texts.items():
            found[token_id] = None if token_id in self._special else text.encode()
        if self._first.unk_id() >= 0:
            found[self._first.unk_id()] = None
        return found

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").unlink(missing_ok=True)  # another tokenizer's, which loaders would prefer
        (folder / "tokenizer.model").write_bytes(self._model)
        added = {str(i): {"content": text, "special": special} for text, (i, special) in self._added.items()}
        write_config(
            folder,
            self,
            tokenizer_class="LlamaTokenizer",
            added_tokens_decoder=added or None,
            add_bos_token=self._add_bos,
            add_eos_token=self._add_eos,
            legacy=self._inner is self._first,
            add_prefix_space=None if self._prefix else False,  # transformers would add one unless told
            model_max_length=self._max_length,
        )

    def _find(self, text: str) -> int | None:
        """The id of a token by its text: SentencePiece itself answers the unknown token for what it lacks."""
        if text in self._symbols:
            return self._symbols[text]
        return self._find_piece(text)

    def _find_piece(self, text: str) -> int | None:
        token_id = self._first.piece_to_id(text)
        return token_id if self._first.id_to_piece(token_id) == text else None

    def _text(self, token_id: int) -> str:
        return self._texts.get(token_id) or self._first.id_to_piece(token_id)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; nothing where there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _decode_part(ids: Iterable[int], processor) -> str:
    return processor.decode([i for i in ids if 0 <= i < processor.vocab_size()])


def _parse(model: bytes, source: str) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise InputError(f"{source}: damaged or no SentencePiece model ({error}); fetch it again") from error
    if not proto.pieces:
        raise InputError(f"{source}: no SentencePiece model (it has no pieces); fetch it again")
    return proto


def _pieces(proto: Any, kind: int) -> dict[str, int]:
    """The symbols of a type; those with spaces, written as "▁", are left to SentencePiece."""
    return {p.piece: i for i, p in enumerate(proto.pieces) if p.type == kind and "▁" not in p.piece}


def _processor(proto: Any) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def _added_tokens(config: TokenizerConfig, pieces: int,
                  find: Callable[[str], int | None]) -> dict[str, tuple[int, bool]]:
    """Tokens that a fine-tuner added beyond the model: text -> (id, special). One without an id has the model's own,
    or the next that is free."""
    added: dict[str, tuple[int, bool]] = {}
    free = max([pieces, *(token.id + 1 for token in config.added if token.id is not None)])
    for token in config.added:
        token_id = token.id if token.id is not None else find(token.content)
        if token_id is None:
            token_id, free = free, free + 1
        added[token.content] = (token_id, token.special)
    return added
