"""The tokenizer that transformers makes of an exported folder, which is not always the one that was written.

AutoTokenizer (transformers 5) goes by the model's family: a qwen2 gets Qwen2Tokenizer, whatever tokenizer_config.json
says, and that takes vocabulary and merges of tokenizer.json and splits text by Qwen's own rules. The other families'
tokenizer.json is taken as it is.
"""

import json
from pathlib import Path
from typing import Any

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
         r"|\s+")
TEXTS = (
    "The quick brown fox didn't jump over 12345.67 dogs; it's   tired.",
    "def f(x):\n    return x ** 2  # squared\n\n\n",
    "  two spaces first,\ta tab\r\nand   5  more   \n\t\n   ", "Café, nai\u0308ve Zoë: 你好，世界。 Привет 👍🏽 ½ x²",
    "HTTP/1.1 200 OK {\"id\": 7, \"name\": \"a_b-c\"} <b>bold</b> $1,234.56 100%", "")
"""what tokenizers are compared on"""


def difference(family: str, folder: Path, tokenizer: Any) -> str | None:
    """One line where transformers' tokenizer of the folder gives other ids than `tokenizer`, which wrote it."""
    if family != "qwen2" or not (folder / "tokenizer.json").exists():
        return None
    remade = _qwen2_tokenizer(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    for text in (text + end for text in TEXTS for end in ("", tokenizer.eos_token)):
        if remade is None or remade.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            return (f"transformers' AutoTokenizer makes a Qwen2Tokenizer for a model of the family {family}, which "
                    f"gives other ids than this model has seen (for {text[:30]!r}): load its tokenizer by "
                    f"PreTrainedTokenizerFast.from_pretrained instead")
    return None


def _qwen2_tokenizer(content: dict[str, Any]) -> Any:
    """The `tokenizers.Tokenizer` that Qwen2Tokenizer makes of a tokenizer.json; None of one that is no BPE."""
    from tokenizers import Tokenizer

    if content["model"].get("type") != "BPE":
        return None
    split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content |= {"normalizer": {"type": "NFC"}, "post_processor": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]}}
    content["model"] |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                         "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return Tokenizer.from_str(json.dumps(content))
