"""Tokens that the files beside a tokenizer know and the tokenizer itself does not, read and added as transformers does.

tokenizer_config.json has them with their ids in `added_tokens_decoder`, and so has the older added_tokens.json;
`extra_special_tokens` and, older, `additional_special_tokens`, there or in special_tokens_map.json, bear no id.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from errors import InputError, as_json

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""the names of tokenizer_config.json for single special tokens"""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A text that is one token wherever it stands."""

    content: str
    id: int | None = None
    """None: the next one that is free"""
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


def read_added_tokens(settings: dict[str, Any], older_map: dict[str, Any], older_ids: dict[str, Any],
                      source: Path) -> tuple[AddedToken, ...]:
    """The tokens of tokenizer_config.json (`settings`), special_tokens_map.json and added_tokens.json, in the order in
    which ids are given to them."""
    maps = (settings, older_map)
    extra = [_token(each, source) for one in maps for each in _extra(one)]
    named = {token.content for token in extra} | {each.content for one in maps for each in _named(one, source)}
    decoder = settings.get("added_tokens_decoder") or {}
    found = [_token(each, source, int(number), special=False) for number, each in decoder.items()]
    found += [AddedToken(text, number, text in named, normalized=text not in named)
              for text, number in older_ids.items()]
    tokens = sorted(found, key=lambda token: token.id) + extra
    return tuple({token.content: token for token in reversed(tokens)}.values())[::-1]  # the first says what it is


def named_tokens(settings: dict[str, Any], source: Path) -> tuple[AddedToken, ...]:
    """bos_token and its like, which are special even where the tokenizer has them as plain text."""
    return tuple(_named(settings, source))


def _named(settings: dict[str, Any], source: Path) -> list[AddedToken]:
    return [_token(settings[name], source) for name in SPECIAL if settings.get(name)]


def _extra(settings: dict[str, Any]) -> list[Any]:
    """A list of tokens, or names of tokens to them."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(extra.values()) if isinstance(extra, dict) else extra


def _token(value: Any, source: Path, number: int | None = None, special: bool = True) -> AddedToken:
    """A token as its text, or as {"content": "</s>", "lstrip": ...}."""
    if isinstance(value, str):
        return AddedToken(value, number, special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise InputError(f"{source}: special token {as_json(value)} has no text; mend tokenizer_config.json")
    flags = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    special = bool(value.get("special", special))
    return AddedToken(value["content"], number, special, **flags, normalized=bool(value.get("normalized", not special)))


def add_tokens(backend: Any, tokens: Iterable[AddedToken], named: Iterable[AddedToken], source: str) -> None:
    """Adds to a `tokenizers.Tokenizer` what it lacks, and makes the `named` ones that it has special.

    Raises InputError where a token's id is not the one that the files say.
    """
    import tokenizers

    def add(token: AddedToken) -> None:
        flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        backend.add_tokens([tokenizers.AddedToken(token.content, **flags)])

    known = {each.content for each in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in known:
            add(token)
        found = backend.token_to_id(token.content)
        if token.id not in (None, found):
            raise InputError(f"{source}: token {token.content!r} has id {token.id} in the files beside the tokenizer, "
                             f"but {found} in it; they do not belong together: fetch them again")
    listed = {token.content for token in tokens}
    for token in named:
        if token.content not in known | listed and backend.token_to_id(token.content) is not None:
            add(token)
