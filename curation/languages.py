"""The language of a row, by py3langid: naive Bayes over byte n-grams, 140 languages."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from curation.stages import Drop, Row, Stage, by_row
from curation.words import parts
from errors import InputError

CONFIDENT, UNLIKELY = 0.5, 0.1
MIN_LETTERS = 40
"""of a part that is judged alone: a name or a phrase in a sentence's place tells no language"""
MAX_CHARACTERS = 4096  # of a text that is looked at: a millisecond each thousand
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|https?://\S+", re.DOTALL)


@by_row
def language(*, keep: tuple[str, ...] = ("en",)) -> Stage:
    """Drops rows in another language than those of `keep` (ISO 639-1), as a whole or in one of their messages.

    Another language has a probability of 0.5 or more, and those to keep less than 0.1 together: what is too short to
    tell, or mostly numbers or code, stays. Code in fences and addresses are not looked at. The note `language` says
    which the row's is. Raises InputError for a language that py3langid has not.
    """
    unknown = sorted(set(keep) - set(_identifier().labels))
    if unknown or not keep:
        raise InputError(f"{f'no language {unknown[0]!r}' if unknown else 'keep is empty'}; give some of "
                         f"{' '.join(sorted(_identifier().labels))}")

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for row in rows:
            found = parts(row)
            texts = ["\n".join(found), *(part for part in found if len(found) > 1 and _letters(part) >= MIN_LETTERS)]
            ranked = _identify(texts[0])
            row.notes["language"] = ranked[0][0]
            other = _foreign(texts[0], ranked, keep) or next(
                filter(None, (_foreign(text, _identify(text), keep) for text in texts[1:])), None)
            yield row if other is None else Drop(row, other)

    return stage


def _foreign(text: str, ranked: Sequence[tuple[str, float]], keep: Sequence[str]) -> str | None:
    """Why a text is in none of the languages to keep; None where it is, or may be."""
    best, probability = ranked[0]
    kept = sum(each for language, each in ranked if language in keep)
    shown = " ".join(text.split())[:60]
    return f"{best} with probability {probability:.2f}: {shown}" if probability >= CONFIDENT and kept < UNLIKELY \
        else None


def _identify(text: str) -> list[tuple[str, float]]:
    """Languages and their probabilities, the likeliest first."""
    return _identifier().rank(_NO_PROSE.sub(" ", text[:MAX_CHARACTERS]))


def _letters(text: str) -> int:
    """Letters and their marks, three for one of a script whose characters are syllables or words."""
    return sum(3 if ord(letter) > 0x2e80 else 1 for letter in text if unicodedata.category(letter)[0] in "LM")


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
