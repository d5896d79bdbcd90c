"""A report's page: whatever a model, a reward or a folder is called or says, it is text; figures have intervals."""

import html.parser
import json

import pytest

from evals.results import write_evaluation
from evals.samples import Sample
from reports.page import page
from reports.run import read_runs

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028 \ud800 &amp;"


class Parsed(html.parser.HTMLParser):
    """Tags by number, the text of the block of data, and all other text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self.text, self._inside = {}, "", "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self._inside = dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self._inside:
            self.data += data
        self.text += data

    def handle_endtag(self, tag):
        self._inside = False


def sample(task, number, right, text="an answer"):
    return Sample(task, f"q{number}", f"q{number}", 0, f"question {number}", text, "", {"right": right}, "stop")


@pytest.fixture
def make_run(tmp_path):
    def make(name, hostile="plain", rights=(0.0, 1.0)):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text(json.dumps({"max_steps": 2, "model": hostile, "lora": {"rank": 4}}))
        lines = [{"step": step, "loss": 1 / step, f"rewards/{hostile}/mean": 0.5 * step, "num_tokens": 9 * step,
                  "skipped_updates": 0, "step_seconds": 1.0} for step in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "launches.jsonl").write_text(json.dumps({"time": "now", "command": f"python {hostile}", "jax": "0.1",
                                                         "commit": None, "about": {"model": hostile}}) + "\n")
        for step, right in zip((0, 2), rights):
            write_evaluation(run / "evals" / f"step-{step:06d}",
                             {"task": [sample("task", number, right, hostile) for number in range(20)]}, {})
        return str(run)

    return make


def test_nothing_that_is_shown_becomes_markup(make_run):
    plain, hostile = (Parsed(page(read_runs([make_run(name, text)]), "")) for name, text in
                      (("one", "plain"), ("two<b>", HOSTILE)))
    assert hostile.tags == plain.tags
    shown = json.loads(hostile.data)
    answer = shown["samples"][0]["rows"][0]["answers"][1]
    assert answer["text"].startswith("</script><img src=x")
    assert answer["note"] == "step-000002, right 1, stop"
    assert "onerror" in hostile.text


def test_the_page_asks_for_nothing_from_anywhere(make_run):
    text = page(read_runs([make_run("one")]), "")
    assert "default-src 'none'" in text
    assert "src=" not in text.replace("default-src", "").replace("script-src", "").replace("img-src", "")


def test_first_and_last_evaluation_stand_beside_each_other_with_intervals(make_run):
    text = Parsed(page(read_runs([make_run("one")]), "")).text
    assert "0.0 [0.0 to 16.1]" in text
    assert "100.0 [83.9 to 100.0]" in text
    assert "+100.0 [" in text
    assert "higher by 100.0 points (20 up, 0 down, p < 0.001)" in text
    assert "step-000000 and step-000002" in text
    assert "always the same: skipped_updates 0" in text
    assert "python plain\nmodel: plain" in text
    assert "now, jax 0.1, commit none" in text


def test_several_runs_are_compared_on_the_same_questions_and_by_their_flags(make_run):
    runs = read_runs([make_run("one"), make_run("two", "other", rights=(0.0, 0.0))])
    parsed = Parsed(page(runs, ""))
    assert "one and two, after their last steps" in parsed.text
    assert "-100.0 [" in parsed.text
    assert "modelplainother" in parsed.text.replace("\n", "")
    assert json.loads(parsed.data)["runs"] == ["one", "two"]
