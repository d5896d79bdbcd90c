"""Personal data and secrets that have a form: e-mail addresses, telephone and card numbers, accounts, keys."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

from curation.stages import TEXT_COLUMNS, Drop, Row, Stage, by_row
from curation.words import strings
from errors import InputError


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def passes_luhn(number: str) -> bool:
    """ISO/IEC 7812: from the right, every second digit doubled, the sum of all digits is a multiple of 10."""
    digits = [int(each) for each in _digits(number)]
    doubled = [each if place % 2 == 0 else sum(divmod(2 * each, 10)) for place, each in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def passes_iban(account: str) -> bool:
    """ISO 7064: the first four characters put behind, letters as 10 to 35, the number is 1 modulo 97."""
    plain = "".join(account.split()).upper()
    return int("".join(str(int(each, 36)) for each in plain[4:] + plain[:4])) % 97 == 1


def is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


class Kind(NamedTuple):
    """What is looked for, and what must hold of what is found."""

    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = bool


PREDIGIT = r"(?<![\w.+/-])"
KINDS = {
    "email": Kind(re.compile(r"(?<![\w.+-])[\w.+-]+@(?!(?:[\w-]+\.)*example\.)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b")),
    "key": Kind(re.compile(r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{36,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35})"
                           r"|-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    "iban": Kind(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), passes_iban),
    "card": Kind(re.compile(PREDIGIT + r"[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}\b(?!\.\d)|" + PREDIGIT
                            + r"3[47]\d{2}[ -]?\d{6}[ -]?\d{5}\b"), passes_luhn),
    "ssn": Kind(re.compile(PREDIGIT + r"(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b(?!-)")),
    "ip": Kind(re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"), is_public_address),
    "phone": Kind(re.compile(PREDIGIT + r"(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,8}){1,4}|"
                             r"\+\d{10,14}|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})\b(?![-.]?\d)"),
                  lambda text: 8 <= len(_digits(text)) <= 15)}
"""in the order in which they are looked for; what one has found is no other's. Addresses of "example." domains, private
networks' IP addresses and numbers with a wrong check digit are nobody's"""


@by_row
def pii(*, kinds: tuple[str, ...] = tuple(KINDS), action: Literal["drop", "mask"] = "drop") -> Stage:
    """Drops rows that hold personal data or secrets of these kinds, or masks them: `[EMAIL]`.

    Patterns see a form: names, and addresses of streets, have none and are not found. The note `masked` has how many
    of each kind were masked.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise InputError(f"kinds are {', '.join(kinds) or 'none'}; give some of {', '.join(KINDS)}")

    def stage(rows: Iterable[Row]) -> Iterator[Row | Drop]:
        for row in rows:
            found = [each for text in _texts(row) for each in find(text, kinds)]
            if found and action == "mask":
                row.record = {name: mask(value, kinds) if name in TEXT_COLUMNS else value
                              for name, value in row.record.items()}
                row.notes["stage"] = "pii"
                row.notes["masked"] = {kind: sum(each == kind for each, _ in found) for kind, _ in found}
            drops = found and action == "drop"
            yield Drop(row, f"{found[0][0]}: {_hidden(found[0][1])}") if drops else row

    return stage


def _texts(row: Row) -> Iterator[str]:
    return strings([value for name, value in row.record.items() if name in TEXT_COLUMNS])


def find(text: str, kinds: Iterable[str]) -> list[tuple[str, str]]:
    """(kind, what stands there) of what is found in a text, by kinds."""
    found: list[tuple[str, str]] = []
    _mask(text, kinds, found)
    return found


def mask(value: Any, kinds: Iterable[str]) -> Any:
    """A string, or messages, with what is found replaced by [KIND]."""
    if isinstance(value, str):
        return _mask(value, kinds, [])
    if isinstance(value, list):
        return [mask(item, kinds) for item in value]
    return {name: mask(item, kinds) for name, item in value.items()} if isinstance(value, dict) else value


def _mask(text: str, kinds: Iterable[str], found: list[tuple[str, str]]) -> str:
    """The text without what is found, which is added to `found`."""
    for kind in KINDS:
        def replace(match: re.Match[str], kind: str = kind) -> str:
            if not KINDS[kind].is_real(match[0]):
                return match[0]
            found.append((kind, match[0]))
            return f"[{kind.upper()}]"

        if kind in kinds:
            text = KINDS[kind].pattern.sub(replace, text)
    return text


def _hidden(text: str) -> str:
    """Enough of it to be found again: a ledger is no place for secrets."""
    return f"{text[:2]}...{text[-2:]}"
