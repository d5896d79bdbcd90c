"""Tokenizers with the chat templates of ten families; fixtures/make_chat_fixtures.py says where the texts come from."""

import json
from pathlib import Path

import tokenizers

from data.tokenizer import FastTokenizer
from data.tokenizer_config import TokenizerConfig

FOLDER = Path(__file__).parent / "fixtures" / "chat_templates"
FIXTURES = json.loads((FOLDER / "rendered.json").read_text(encoding="utf-8"))


def open_family(family, template=None):
    special, backend = FIXTURES["families"][family], tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    template = template or (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    ends = tuple(backend.token_to_id(token) for token in special["further"])
    return FastTokenizer(backend, TokenizerConfig(family, special["eos"], special["bos"], chat_template=template,
                                                  end_ids=ends))
