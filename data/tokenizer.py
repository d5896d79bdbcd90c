"""Tokenizers: text to token ids and back, whatever file they come from.

`load_tokenizer` takes a Hugging Face folder, a GGUF file or a SentencePiece model. The rest of Temper knows
only the `Tokenizer` protocol. Nothing is added to a text unless it is asked for: a chat template writes its
own BOS, and a second one before it is a bug that nobody sees.
"""

import typing
from pathlib import Path

from data.added_tokens import add_tokens
from data.token_bytes import bytes_of_backend
from data.tokenizer_config import TokenizerConfig, find_eos, find_token, read_config, write_config
from errors import InputError


class Tokenizer(typing.Protocol):
    """What a tokenizer must offer.

    `eos_id` is appended to a document; `eos_ids`, sorted, are all tokens that end generation. `bos_token` and
    `eos_token` are their text for chat templates, "" where there is none. `vocab_size` is the highest id plus
    one.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    eos_ids: tuple[int, ...]
    bos_token: str
    eos_token: str
    chat_template: str | None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids. Special tokens written in the text are recognised; none is added unless asked for."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and, for each, the [start, end) characters of `text` it stands for. Nothing is added.

        Tokens that hold bytes of one character all carry that character's offsets.
        """

    def decode(self, ids: typing.Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids beyond the vocabulary have none."""

    def token_bytes(self) -> list[bytes | None]:
        """What each token adds to the bytes of a text, in its middle; None for special tokens, and for ids of none."""

    def save(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer` and transformers' AutoTokenizer read back."""


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a folder (tokenizer.json, else tokenizer.model), a .gguf file or a .model file."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a tokenizer folder, a .gguf or a .model file")
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".gguf":
        from data.gguf_tokenizer import read_gguf_tokenizer

        return FastTokenizer(*read_gguf_tokenizer(path))
    if path.suffix == ".model":
        return _load_sentencepiece(path, TokenizerConfig(source=str(path)))
    raise InputError(f"{path}: not a tokenizer; give a folder with tokenizer.json, a .gguf or a .model file")


def has_tokenizer(path: Path) -> bool:
    """False for a folder without any of the files that load_tokenizer reads."""
    return not path.is_dir() or any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def open_tokenizer(path: Path) -> Tokenizer | None:
    """load_tokenizer; None for a folder that holds none (then rows come as tokens)."""
    return load_tokenizer(path) if has_tokenizer(path) else None


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer(_read_backend(folder / "tokenizer.json"), read_config(folder))
    if (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder / "tokenizer.model", read_config(folder))
    raise InputError(f"{folder}: no tokenizer (looked for tokenizer.json, tokenizer.model); copy one there")


def _load_sentencepiece(path: Path, config: TokenizerConfig) -> Tokenizer:
    from data.sentencepiece_tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer(path.read_bytes(), config)


def _read_backend(path: Path):
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise InputError(f"{path}: damaged or of an unknown kind ({error}); fetch it again") from error


class FastTokenizer:
    """A `tokenizers.Tokenizer`, read from tokenizer.json or built from a GGUF file."""

    def __init__(self, backend, config: TokenizerConfig):
        backend.no_truncation()  # a tokenizer.json can carry both, and would cut or pad every text in silence
        backend.no_padding()
        # The post-processor is kept apart: besides adding BOS it trims spaces off the offsets (ByteLevel's
        # trim_offsets), and it would do so even where nothing is to be added.
        self._post_processor, backend.post_processor = backend.post_processor, None
        self._backend = backend
        add_tokens(backend, config.added, config.named, config.source)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1  # ids can have gaps
        self._max_length = config.settings.get("model_max_length")
        self._look_up(config)

    def _look_up(self, config: TokenizerConfig) -> None:
        """The special tokens that the configuration names, by text and by id."""
        backend = self._backend
        self.bos_token = config.bos_token
        self.bos_id = find_token(config.bos_token, backend.token_to_id, config)
        self.eos_id = find_eos(config, backend.token_to_id)
        self.eos_token = backend.id_to_token(self.eos_id)
        self.eos_ids = tuple(sorted({self.eos_id, *config.end_ids}))
        known_pad = config.pad_token and backend.token_to_id(config.pad_token) is not None
        self.pad_token = config.pad_token if known_pad else self.eos_token
        self.chat_template = config.chat_template

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        encoding = self._encode(text)
        if add_special_tokens and self._post_processor is not None:
            encoding = self._post_processor.process(encoding, None, True)
        return encoding.ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._encode(text)
        return encoding.ids, encoding.offsets

    def decode(self, ids: typing.Iterable[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_bytes(self) -> list[bytes | None]:
        read, added = bytes_of_backend(self._backend), self._backend.get_added_tokens_decoder()
        found = [token if token is None else read(token)
                 for token in map(self._backend.id_to_token, range(self.vocab_size))]
        for token_id, token in added.items():
            found[token_id] = None if token.special else token.content.encode()
        return found

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.post_processor = self._post_processor
        try:
            self._backend.save(str(folder / "tokenizer.json"))
        finally:
            self._backend.post_processor = None
        # This class takes tokenizer.json as it is; a model's own may build parts of it anew.
        kind = "PreTrainedTokenizerFast"
        write_config(folder, self, tokenizer_class=kind, model_max_length=self._max_length)

    def _encode(self, text: str):
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise InputError(f"text that is not valid Unicode ({text[:40]!a}); mend or drop it") from error
