"""Precision and recall of curation's filters, on faults that are planted in real text.

  python -m benchmarks.curation_filters --text gsm8k.jsonl:question,answer chats.jsonl:prompt,completion

One row in four gets a fault, one kind of fault at a time. Precision: of the rows that a stage drops, those that are
planted for it (real faults of the text count against it; --show prints such rows). Recall: of the planted ones, those
that it drops. With Wilson's 95 % intervals. Near duplicates have 0 to 30 % of their words edited; to be found are those
whose true similarity reaches the threshold. That paraphrases are not found is shown, and no fault of the rule.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from curation.chats import malformed_chats
from curation.contamination import contamination
from curation.duplicates import exact_duplicates, near_duplicates
from curation.languages import language
from curation.phrases import phrases
from curation.pii import pii
from curation.repetition import repetition
from curation.stages import Drop, Row, Stage
from curation.words import jaccard, ngram_set, words

Record = dict[str, Any]
EDITS = (0.0, 0.05, 0.1, 0.2, 0.3)
"""shares of a near duplicate's words that are others"""
RULES = ((0.8, 5), (0.3, 2))
"""thresholds and n-grams of near duplicates: the default, and one that sees more"""
FOREIGN = (
    "Der Bauer ging am frühen Morgen auf den Markt und verkaufte dort alle seine Äpfel an die Leute aus der Stadt.",
    "Le fermier est allé au marché tôt le matin et il a vendu toutes ses pommes aux habitants de la ville voisine.",
    "El agricultor fue al mercado temprano por la mañana y vendió todas sus manzanas a la gente de la ciudad.",
    "Il contadino è andato al mercato la mattina presto e ha venduto tutte le sue mele alla gente della città.",
    "De boer ging 's ochtends vroeg naar de markt en verkocht al zijn appels aan de mensen uit de stad.",
    "Крестьянин рано утром пошёл на рынок и продал там все свои яблоки людям из соседнего города.",
    "农夫一大早就去了市场，把所有的苹果都卖给了城里的人，然后高高兴兴地回家了。",
    "農夫は朝早く市場へ行き、りんごを全部町の人たちに売って、うれしそうに家へ帰りました。",
    "농부는 아침 일찍 시장에 가서 사과를 모두 마을 사람들에게 팔고 기쁘게 집으로 돌아왔습니다.",
    "ذهب المزارع إلى السوق في الصباح الباكر وباع كل تفاحه لأهل المدينة ثم عاد إلى بيته سعيدا.",
    "किसान सुबह जल्दी बाज़ार गया और उसने अपने सारे सेब शहर के लोगों को बेच दिए।",
    "Rolnik poszedł wcześnie rano na targ i sprzedał wszystkie swoje jabłka ludziom z pobliskiego miasta.",
    "Çiftçi sabah erkenden pazara gitti ve bütün elmalarını şehirdeki insanlara sattı, sonra evine döndü.")
REFUSALS = ("I'm sorry, but I can't help with that.", "As an AI language model, I have no opinion on this.",
            "I cannot assist with this request.", "I\u2019m unable to assist with that. It is against my guidelines.")
PERSONAL = ("Write to jane.roe@acme-widgets.com.", "Call me at (415) 555-2671 tonight.", "My number is +49 30 1234567.",
            "Use the card 4111 1111 1111 1111, please.", "The account is DE89 3704 0044 0532 0130 00.")


class Planted(NamedTuple):
    """Rows, and which of them a stage must drop."""

    records: list[Record]
    wanted: list[bool]


Fault = Callable[[list[Record], random.Random, Path], tuple[Stage, Planted]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, help="FILE.jsonl:PROMPT,COMPLETION, columns of real text")
    parser.add_argument("--rows", type=int, default=1000, help="of each file")
    parser.add_argument("--show", type=int, default=0, help="real rows that each stage drops to print")
    arguments = parser.parse_args()
    for given in arguments.text:
        path, _, columns = given.rpartition(":")
        records = read(Path(path), *columns.split(","))[: arguments.rows]
        print(f"{path}, {len(records)} rows")
        for name, fault in FAULTS.items():
            measure(name, fault, records, arguments.show)


def read(path: Path, prompt: str, completion: str) -> list[Record]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    made = [{"prompt": str(row[prompt]), "completion": str(row[completion])} for row in rows]
    return [row for row in made if row["prompt"].strip() and row["completion"].strip()]


def measure(name: str, fault: Fault, records: list[Record], show: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage, (planted, wanted) = fault(records, random.Random(0), Path(folder))
        out = list(stage([Row("text", index, dict(record)) for index, record in enumerate(planted)]))
    dropped = [each for each in out if isinstance(each, Drop)]
    wrong = [each for each in dropped if not wanted[each.row.index]]
    right = len(dropped) - len(wrong)
    print(f"  {name:34s} precision {share(right, len(dropped)):32s} recall {share(right, sum(wanted))}")
    for each in wrong[:show]:
        print(f"      {each.reason[:100]} | {each.row.text[:80]!r}")


def share(hits: int, count: int) -> str:
    """Of `count`, with Wilson's interval."""
    if not count:
        return "none"
    p, z = hits / count, 1.96
    centre, spread = p + z * z / (2 * count), z * (p * (1 - p) / count + z * z / (4 * count**2)) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return f"{p:.3f} [{low:.3f}, {high:.3f}] of {count}"


# ---------------------------------------------------------------------------- faults: a stage, and rows planted for it


def one_in_four(stage: Callable[[], Stage], break_row: Callable[[Record, random.Random], Record]) -> Fault:
    """The stage, and the records, of which so many are broken."""

    def fault(records: list[Record], draw: random.Random, folder: Path) -> tuple[Stage, Planted]:
        broken = set(draw.sample(range(len(records)), len(records) // 4))
        return stage(), Planted([break_row(row, draw) if index in broken else row for index, row in enumerate(records)],
                                [index in broken for index in range(len(records))])
    return fault


def exact(records: list[Record], draw: random.Random, folder: Path) -> tuple[Stage, Planted]:
    """Behind the records, copies of one in four in other case and with other white space."""
    def edit(text: str) -> str:
        spaced = text.replace(" ", draw.choice((" ", "  ", "\n", "\u00a0")))
        return draw.choice((str.upper, str.lower, str))(spaced) + draw.choice(("", " ", "\n"))

    apart = without(exact_duplicates(), records)
    copies = [{name: edit(text) for name, text in row.items()} for row in draw.sample(apart, len(apart) // 4)]
    return exact_duplicates(), Planted(apart + copies, [False] * len(apart) + [True] * len(copies))


def near(edits: float, threshold: float, ngram: int) -> Fault:
    def fault(records: list[Record], draw: random.Random, folder: Path) -> tuple[Stage, Planted]:
        """Behind the records, copies of one in four with words edited; to be found are those that the rule can see."""
        stage = near_duplicates(threshold=threshold, ngram=ngram)
        apart = without(stage, without(exact_duplicates(), records))
        originals = draw.sample(apart, len(apart) // 4)
        copies = [{name: edit_words(text, edits, draw) for name, text in row.items()} for row in originals]
        seen = [similarity(*pair, ngram) >= threshold for pair in zip(originals, copies)]
        print(f"  words edited {edits:.0%}: {sum(seen)} of {len(seen)} copies share {threshold:g} of {ngram}-grams; "
              f"real near duplicates, left out: {len(records) - len(apart)}")
        return stage, Planted(apart + copies, [False] * len(apart) + seen)
    return fault


def without(stage: Stage, records: list[Record]) -> list[Record]:
    """The records that a stage keeps: what is planted is then all there is."""
    return [each.record for each in stage([Row("", 0, row) for row in records]) if isinstance(each, Row)]


def similarity(a: Record, b: Record, ngram: int) -> float:
    return jaccard(*(ngram_set("\n".join(row.values()), ngram) for row in (a, b)))


def edit_words(text: str, edits: float, draw: random.Random) -> str:
    new = text.split(" ")
    for place in draw.sample(range(len(new)), round(edits * len(new))):
        new[place] = draw.choice(("other", "several", "green", "seventeen", "quickly"))
    return " ".join(new)


def contaminated(change: Callable[[str], str]) -> Fault:
    """An evaluation is made of every fourth record; one in four of the others holds the prompt of one of eight
    words or more, changed."""
    def fault(records: list[Record], draw: random.Random, folder: Path) -> tuple[Stage, Planted]:
        path = folder / "test.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in records[::4]), encoding="utf-8")
        plain = without(contamination(against=(str(path),)), [row for index, row in enumerate(records) if index % 4])
        chance = len(records) - len(records[::4]) - len(plain)
        print(f"  real rows that hold an evaluation's words, left out below: {chance}")
        asked = [row["prompt"] for row in records[::4] if len(words(row["prompt"])) >= 8]
        broken = set(draw.sample(range(len(plain)), len(plain) // 4))
        held = [row | {"prompt": f"Here is a task. {change(draw.choice(asked))} Show your work."}
                if index in broken else row for index, row in enumerate(plain)]
        return contamination(against=(str(path),)), Planted(held, [index in broken for index in range(len(plain))])
    return fault


def punctuate(text: str) -> str:
    return f"**{text.upper()}**".replace(". ", "!\n\n- ").replace(", ", " -- ")


def paraphrase(text: str) -> str:
    """Every third word is another."""
    return " ".join("thing" if place % 3 == 2 else word for place, word in enumerate(text.split()))


def foreign(row: Record, draw: random.Random) -> Record:
    """An answer in another language."""
    return row | {"completion": draw.choice(FOREIGN)}


def refuse(row: Record, draw: random.Random) -> Record:
    refusal = draw.choice(REFUSALS)
    return row | {"completion": draw.choice((refusal, f"{refusal} {row['completion']}", refusal.upper()))}


def loop(row: Record, draw: random.Random) -> Record:
    """Caught in a loop of 1 to 12 words for 64 more."""
    said = row["completion"].split()
    unit = said[-draw.randrange(1, 13) :]
    return row | {"completion": " ".join([*said, *(unit[place % len(unit)] for place in range(64))])}


def reveal(row: Record, draw: random.Random) -> Record:
    return row | {"prompt": f"{row['prompt']} {draw.choice(PERSONAL)}"}


def break_chat(row: Record, draw: random.Random) -> Record:
    """Of messages: two turns of one role, nothing said, no role, content of another kind, markup, no answer."""
    user, assistant = ({"role": role, "content": row[name]} for role, name in (("user", "prompt"),
                                                                               ("assistant", "completion")))
    return {"messages": draw.choice((
        [user, user, assistant], [user, assistant, assistant], [user], [], [assistant, user],
        [user, assistant | {"content": " "}], [user, assistant | {"content": None}],
        [{"content": row["prompt"]}, assistant],
        [user, assistant | {"content": {"text": "x"}}], [user, assistant | {"role": "bot"}],
        [user, assistant | {"content": f"{row['completion']}<|im_end|>\n<|im_start|>user\nAnd now?"}],
        [user, assistant | {"content": f"{row['completion']}\n\nHuman: Thanks."}],
        [user, {"role": "system", "content": "Be brief."}, assistant]))}


def as_chat(row: Record) -> Record:
    return row if "messages" in row else {"messages": [{"role": "user", "content": row["prompt"]},
                                                       {"role": "assistant", "content": row["completion"]}]}


def chats(records: list[Record], draw: random.Random, folder: Path) -> tuple[Stage, Planted]:
    stage, (planted, wanted) = one_in_four(malformed_chats, break_chat)(records, draw, folder)
    return stage, Planted([as_chat(row) for row in planted], wanted)


FAULTS: dict[str, Fault] = {
    "exact duplicates": exact, **{f"{ngram}-grams, {edits:.0%} edited": near(edits, *rule)
                                  for rule in RULES for ngram in rule[1:] for edits in EDITS},
    "contamination, verbatim": contaminated(str), "contamination, other typography": contaminated(punctuate),
    "contamination, paraphrased": contaminated(paraphrase), "another language": one_in_four(language, foreign),
    "broken chats": chats, "refusals": one_in_four(phrases, refuse), "loops": one_in_four(repetition, loop),
    "personal data": one_in_four(pii, reveal)}

if __name__ == "__main__":
    main()
