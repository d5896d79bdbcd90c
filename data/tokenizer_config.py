"""What a folder says about its tokenizer's special tokens: tokenizer_config.json and the files beside it.

Five files can have a say, and each has been left out by somebody: tokenizer_config.json, the older
special_tokens_map.json and added_tokens.json below it, chat_template.jinja above its `chat_template`, and
generation_config.json, which alone knows of further end tokens (Llama-3's <|eot_id|>, Qwen's <|endoftext|>).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from data.added_tokens import AddedToken, named_tokens, read_added_tokens
from errors import InputError

# Our own key: transformers passes over it, and without it a saved tokenizer forgets its further end tokens.
EOS_IDS_KEY = "temper_eos_ids"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Special tokens by their text, "" where there is none, before they are looked up in a vocabulary.

    `end_ids` are the tokens that end generation besides `eos_token`; `settings` is tokenizer_config.json as
    it is; `source` is the file or folder, for errors.
    """

    source: str
    eos_token: str = ""
    bos_token: str = ""
    pad_token: str = ""
    chat_template: str | None = None
    end_ids: tuple[int, ...] = ()
    added: tuple[AddedToken, ...] = ()
    """tokens that only these files know"""
    named: tuple[AddedToken, ...] = ()
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_config(folder: Path) -> TokenizerConfig:
    """The configuration that stands beside a tokenizer in `folder`; a file that is missing says nothing."""
    own, older = (read_json(folder / f"{name}.json") for name in ("tokenizer_config", "special_tokens_map"))
    settings = older | own
    generation = read_json(folder / "generation_config.json")
    return TokenizerConfig(
        source=str(folder),
        eos_token=token_text(settings.get("eos_token")),
        bos_token=token_text(settings.get("bos_token")),
        pad_token=token_text(settings.get("pad_token")),
        chat_template=_chat_template(folder, settings.get("chat_template")),
        end_ids=_id_list(generation.get("eos_token_id")) + _id_list(settings.get(EOS_IDS_KEY)),
        added=read_added_tokens(own, older, read_json(folder / "added_tokens.json"), folder),
        named=named_tokens(settings, folder),
        settings=settings,
    )


def write_config(folder: Path, tokenizer: Any, **settings: Any) -> None:
    """Write tokenizer_config.json for transformers and for `read_config`; `settings` are further keys.

    A chat_template.jinja left there by another tokenizer would win over the template written here: it goes.
    """
    special = {name: getattr(tokenizer, name) or None for name in ("bos_token", "eos_token", "pad_token")}
    content = special | {
        "chat_template": tokenizer.chat_template,
        "clean_up_tokenization_spaces": False,  # transformers' True would change what decodes: "a ." to "a."
        EOS_IDS_KEY: list(tokenizer.eos_ids),
    }
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    kept = {key: value for key, value in (content | settings).items() if value is not None}
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def find_token(token: str, vocabulary: Any, config: TokenizerConfig) -> int | None:
    """The id of a special token by its text, None for "". `vocabulary(text)` gives an id or None."""
    if not token:
        return None
    token_id = vocabulary(token)
    if token_id is None:
        raise InputError(
            f"{config.source}: special token {token!r} is not in the vocabulary; mend tokenizer_config.json"
        )
    return token_id


def find_eos(config: TokenizerConfig, vocabulary: Any, fallback: int | None = None) -> int:
    """The id that ends a document: eos_token, else the model's own `fallback`, else the first end id."""
    named = find_token(config.eos_token, vocabulary, config)
    for token_id in (named, fallback, *config.end_ids):
        if token_id is not None:
            return token_id
    raise InputError(f"{config.source}: no end token is named; give eos_token in tokenizer_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise InputError(f"{path}: damaged JSON ({error}); fetch or write the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a JSON object; fetch the file again")
    return content


def token_text(token: str | dict[str, Any] | None) -> str:
    """A special token is written as a string or as an AddedToken, {"content": "</s>", "lstrip": ...}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""


def _chat_template(folder: Path, template: str | list[dict[str, str]] | None) -> str | None:
    """The template in chat_template.jinja, else the string or the list of {name, template} given."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    if not isinstance(template, list):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
        raise InputError(f"{folder}: chat templates {', '.join(sorted(named))}, none called 'default'; rename one to "
                         f"it")
    return named["default"]


def _id_list(ids: int | list[int] | None) -> tuple[int, ...]:
    """generation_config's eos_token_id is one id or a list of them."""
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
