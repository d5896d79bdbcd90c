"""The card of an export: base, data with hashes, figures before and after, flags."""

import json

import pytest
import yaml
from tiny import CONFIG, LORA

from training.model_card import model_card
from training.runs import TrainedRun

FLAGS = {"model": "owner/base", "learning_rate": 1e-4, "lora": {"rank": 4}, "eval_data": [{"source": "held.jsonl"}],
         "data": [{"source": "rows.jsonl", "weight": 1.0}, {"source": "tfds:more", "weight": 0.5}],
         "sha256": ["c0ffee", "beef"]}
METRICS = [{"step": 0, "eval/loss": 3.5, "eval/accuracy": 0.25}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0},
           {"step": 2, "eval/loss": 1.25, "eval/accuracy": 0.5}, {"step": 4, "eval/loss": 1.75, "eval/accuracy": 0.75}]


@pytest.fixture
def run(tmp_path):
    def make(checkpoint="newest", metrics=METRICS, **flags):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(FLAGS | flags, sort_keys=False))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return TrainedRun(tmp_path, CONFIG, tmp_path / "model", LORA, checkpoint)

    return make


def parts(card):
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_tells_base_data_figures_and_flags(run):
    header, body = parts(model_card(run(), "runs/mine"))
    assert header == {"library_name": "transformers", "tags": ["temper"], "base_model": "owner/base"}
    assert "LoRA of rank 4 was trained with Temper, beginning with `owner/base`" in body
    assert "| trained on | `rows.jsonl` | 1.0 | c0ffee |\n| trained on | `tfds:more` | 0.5 | c0ffee |\n" \
           "| held out | `held.jsonl` | 1 | beef |" in body
    assert "| | step 0 | step 4 |\n|---|---|---|\n| eval/loss | 3.5 | 1.75 |\n| eval/accuracy | 0.25 | 0.75 |" in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == {
        name: value for name, value in FLAGS.items() if name != "sha256"}


@pytest.mark.parametrize(("checkpoint", "figure"), [("best", "| 1.25 |"), ("3", "| 1.25 |"), ("4", "| 1.75 |")])
def test_the_figures_are_those_of_the_checkpoint(checkpoint, figure, run):
    assert figure in model_card(run(checkpoint), "runs/mine")


def test_without_held_out_rows_the_figures_are_of_training(run):
    card = model_card(run(metrics=METRICS[1:3]), "runs/mine")
    assert "| | step 1 | step 2 |\n|---|---|---|\n| loss | 3 | 2 |" in card
    assert "Figures" not in model_card(run(metrics=[]), "runs/mine")


def test_an_adapter_names_its_base_where_the_hub_has_it(run, tmp_path):
    assert parts(model_card(run(), "r", "other/base"))[0]["base_model"] == "other/base"
    assert "base_model" not in parts(model_card(run(), "r", str(tmp_path / "base")))[0]
    assert parts(model_card(run(), "r", "other/base"))[0]["library_name"] == "peft"
