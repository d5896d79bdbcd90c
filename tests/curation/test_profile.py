"""Dry runs: what is tried on what, bounds that are told and not enforced, data that has changed since, the page."""

import html.parser
import json
import re

import pytest

from curation.folder import write_counts
from curation.page import write_page
from curation.profile import Done, Spaced, check_profile, dry_run, histograms, measure, write_profile
from curation.recipe import parse_recipe
from curation.rows import DataRows, fingerprint
from curation.run import run_stages
from curation.stages import Row
from data.sources import DataSource
from errors import InputError

HOSTILE = "<script>alert('&')</script> \u2028 </pre>"


@pytest.fixture
def rows(tmp_path):
    texts = {"a.jsonl": [f"{'x' * (number % 12)} {number}" for number in range(200)],
             "b.jsonl": [HOSTILE] * 4 + ["short"]}
    for name, some in texts.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return DataRows([DataSource(str(tmp_path / name)) for name in texts])


def profile(rows, output, *stages, sample_rows=16, **bounds):
    recipe = parse_recipe({"max_removal": bounds, "stages": list(stages)})
    done = dry_run(rows, recipe, output, fingerprint(rows), sample_rows)
    write_profile(output, rows, recipe, fingerprint(rows), done, applied=False)
    write_page(output)
    return json.loads((output / "profile.json").read_text()), (output / "report.html").read_text()


SHORTER = {"curated:shorter": {"than": 10}}


def test_bounds_are_told_and_not_enforced(rows, tmp_path):
    found, page = profile(rows, tmp_path / "out", SHORTER, {"curated:shorter": {"than": 0}}, default=0.5)
    first, second = found["stages"]
    assert first["over"] == [rows.sources[1][0]]
    assert second["over"] == [name for name, _ in rows.sources]
    assert (found["rows"], found["left"]) == (205, 0)
    counts = first["sources"][rows.sources[0][0]]
    assert counts["read"] == 200 == counts["kept"] + counts["dropped"]
    assert sum(found["histograms"]["characters"]["before"]) == 205
    assert "class='share over'" in page


def test_models_are_tried_on_a_sample_and_the_rest_on_all_rows(rows, tmp_path):
    found, page = profile(rows, tmp_path / "out", SHORTER, {"curated:judged": {"model": "m"}}, "curated:distinct")
    left = sum(each["kept"] for each in found["stages"][0]["sources"].values())
    assert [stage["sample"] for stage in found["stages"]] == [0, 16, 16]
    assert left > 16 == sum(each["read"] for each in found["stages"][1]["sources"].values())
    assert "tried on 16 rows" in page
    assert "a share of its own rows" in page
    tallest = [max(float(height) for height in re.findall(rf"height='([\d.]+)' class={when}", page))
               for when in ("before", "after")]
    assert max(tallest) == 110
    assert min(tallest) > 20  # though those after are few
    assert found["groups"] == {"verdict": {"good": found["left"]}}


def test_what_a_dry_run_has_done_on_all_rows_is_gone_on_from(rows, tmp_path):
    output, recipe = tmp_path / "out", parse_recipe({"max_removal": {"default": 1}, "stages": [SHORTER]})
    profile(rows, output, SHORTER)
    before = {path: path.stat().st_mtime_ns for path in (output / "work").iterdir()}
    left, counts = run_stages(rows, recipe, output, fingerprint(rows))
    assert {path: path.stat().st_mtime_ns for path in (output / "work").iterdir()} == before
    write_counts(output, output / "kept.jsonl", fingerprint(rows), recipe, counts)
    with pytest.raises(InputError, match="was applied to"):
        dry_run(rows, recipe, output, fingerprint(rows), 16)
    write_profile(output, rows, recipe, fingerprint(rows), Done(left, counts, [0]), applied=True)
    assert json.loads((output / "profile.json").read_text())["applied"]


def test_data_that_has_changed_since_is_refused(rows, tmp_path):
    check_profile(tmp_path / "out", "anything")
    profile(rows, tmp_path / "out", SHORTER)
    check_profile(tmp_path / "out", fingerprint(rows))
    with pytest.raises(InputError, match="profile it again with --dry-run"):
        check_profile(tmp_path / "out", "another")


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_what_rows_say_is_text_on_the_page(rows, tmp_path):
    _, page = profile(rows, tmp_path / "out", SHORTER)
    read = Tags()
    read.feed(page)
    assert "script" not in read.tags
    assert HOSTILE in read.text
    assert {"svg", "table", "details"} <= set(read.tags)


def test_histograms_count_every_number_once():
    def measured(**notes):
        longest = max(map(len, notes.values()))
        return measure(Row("data", index, {}, {name: values[index] for name, values in notes.items()
                                               if index < len(values)}) for index in range(longest))

    found = histograms(measured(a=[1, 2, 3, float("nan")], b=[5.0]), measured(a=[2], c=[0, 1, 10, 100_000], d=["x"]))
    del found["characters"], found["words"]
    assert {name: sum(sum(each.get(when, ())) for when in ("before", "after")) for name, each in found.items()} \
        == {"a": 4, "b": 1, "c": 4}
    assert all(sorted(each["edges"]) == each["edges"] for each in found.values())
    assert found["c"]["edges"][0] == 0


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (3, [0, 4, 9]), (10, list(range(10))),
                                                 (99, list(range(10)))])
def test_a_sample_is_spaced_evenly(count, expected):
    assert list(Spaced(range(10), count)) == expected
