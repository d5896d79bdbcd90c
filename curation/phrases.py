"""Phrases that tell a refusal or boilerplate: what an assistant says instead of an answer."""

import unicodedata
from typing import Any

from curation.filters import dropping
from curation.stages import Row, Stage, by_row, chat_or_text
from curation.words import parts
from errors import InputError

REFUSALS = (
    "as an ai language model", "as a language model", "as an ai assistant", "as an ai,", "i am an ai language model",
    "i'm an ai language model", "i'm just an ai", "i cannot assist with", "i can't assist with", "i can't help with",
    "i cannot help with", "i'm unable to assist", "i am unable to assist", "i'm not able to help with",
    "i am not able to provide", "i cannot provide", "i can't provide", "i cannot fulfill", "i can't fulfill",
    "i'm sorry, but i can", "i am sorry, but i can", "sorry, i can't", "sorry, i cannot", "i'm sorry, i can't",
    "i'm sorry, i cannot", "i must decline", "i won't be able to help", "i will not help",
    "it is not appropriate for me", "it would not be appropriate for me", "goes against my programming",
    "against my guidelines", "my knowledge cutoff", "as of my last update", "as of my knowledge", "openai's use policy",
    "i do not have personal", "i don't have personal")
APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\u00b4`", "'''''")


@by_row
def phrases(*, drop: tuple[str, ...] = REFUSALS, words_from_start: int | None = None) -> Stage:
    """Drops rows in which an assistant says one of the phrases of `drop`, by default refusals and talk of being a
    model; without regard to case, white space and the form of apostrophes, from one word's beginning to one's end.

    `words_from_start` looks at so many words of each turn alone. Of a plain `text` all is looked at. In pairs the
    rejected answer may say what it likes.
    """
    wanted = [_plain(phrase) for phrase in drop]
    if not all(wanted) or not wanted:
        raise InputError("drop is a list of phrases, none of them empty")
    if words_from_start is not None and words_from_start < 1:
        raise InputError(f"words_from_start is {words_from_start}; it takes 1 or more")

    def problem(row: Row) -> str | None:
        for text in spoken(row):
            plain = " ".join(_plain(text).split()[:words_from_start])
            place = next((place for phrase in wanted if (place := _find(phrase, plain)) is not None), None)
            if place is not None:
                return f"says: {plain[max(0, place - 20) : place + 60]}"
        return None

    return dropping(problem)


def spoken(row: Row) -> list[str]:
    """What the assistant says in a row's text, completion, chosen answer or messages."""
    turns = [message for name in ("messages", "conversations", "completion", "chosen")
             for message in _list(chat_or_text(row.record, name))]
    by_assistant = [message for message in turns if isinstance(message, dict)
                    and message.get("role", message.get("from")) in ("assistant", "gpt")]
    strings = [row.record[name] for name in ("text", "completion", "chosen") if isinstance(row.record.get(name), str)]
    return strings + parts(Row(row.source, row.index, {"messages": by_assistant}))


def _find(phrase: str, text: str) -> int | None:
    """Where a phrase stands in a text, no part of a longer word at either end; None for nowhere."""
    place = text.find(phrase)
    while place >= 0:
        if not _inside_word(text, place) and not _inside_word(text, place + len(phrase)):
            return place
        place = text.find(phrase, place + 1)
    return None


def _inside_word(text: str, place: int) -> bool:
    return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).translate(APOSTROPHES).casefold().split())
