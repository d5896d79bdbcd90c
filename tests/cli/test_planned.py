"""The flags of a planned script: what may be left out, what is looked for, and the recipe that comes of it."""

import types

import pytest

from cli.parsing import parse
from cli.planned import job_of, known_by, recipe_of, with_choice, with_stand_ins
from errors import InputError
from planning.search import Choice
from scripts import grpo, plan, sft
from scripts.plan import Own, read_flags

FLAGS = ["--model", "qwen3-0.6b", "--batch-size", "32", "--max-length", "2048"]
CHOICE = Choice(4, "dots", (("slice", 1), ("data", 2), ("fsdp", 2), ("tensor", 1)), ("residual_length=tensor",))


def test_what_a_step_does_not_depend_on_may_be_left_out(tmp_path):
    assert with_stand_ins(sft.Config, ["--data=x", "--num-epochs", "2"]) == [
        "--output-dir", "none", "--data=x", "--num-epochs", "2"]
    assert with_stand_ins(grpo.Config, [])[::2] == ["--data", "--output-dir", "--rewards", "--max-steps"]
    (tmp_path / "recipe.yaml").write_text("data: [a.jsonl]\noutput-dir: b\nmax_steps: 5\n")
    given = ["--config", str(tmp_path / "recipe.yaml")]
    assert with_stand_ins(sft.Config, given) == given


def test_a_choice_becomes_a_recipe_that_the_script_takes(tmp_path):
    config = read_flags("sft", [*FLAGS, "--lora.rank", "8", "--mesh.rules", "residual_length=none", "vocab=none"])
    chosen = with_choice(config, CHOICE)
    text = recipe_of(chosen, "scripts.sft on v5p:2x2x1: fits")
    assert text.startswith("# scripts.sft on v5p:2x2x1: fits\n")
    assert "none.jsonl" not in text
    (tmp_path / "recipe.yaml").write_text(text)
    read = parse(sft.Config, ["--config", str(tmp_path / "recipe.yaml"), "--data", "a", "--output-dir", "b",
                              "--max-steps", "1000"], "")
    assert known_by(read) == known_by(chosen)
    assert read.mesh.rules == ("vocab=none", "residual_length=tensor")
    assert (read.num_microbatches, read.remat, read.mesh.data, read.lora.rank) == (4, "dots", 2, 8)


def test_a_job_is_of_the_flags():
    job = job_of(read_flags("sft", [*FLAGS, "--packing", "first-fit"]), "v5e:2x4", 2)
    assert (job.rows, job.length, job.chips, job.slices, job.lora) == (32, 2048, 16, 2, None)
    with pytest.raises(InputError, match="--search tries --num-microbatches, which this script has not"):
        job_of(read_flags("grpo", FLAGS[:2]), "v5e:2x4", 1)


def test_a_model_that_fits_nowhere_is_one_line_by_how_much():
    need = types.SimpleNamespace(need=20 * 2**30, limit=15 * 2**30, fits=False, times=None)
    planner = types.SimpleNamespace(estimate=lambda *_, **__: need)
    own = Own("sft", "v5e:2x2", 1, 512, None, None, True, True)
    with pytest.raises(InputError, match=r"nothing fits v5e:2x2: .* needs 20.00 GiB of 15.00 GiB .* 5.00 GiB too much; "
                                         "take a larger topology"):
        plan.found(own, read_flags("sft", FLAGS), planner)


def test_a_plan_is_known_by_what_names_stand_for(tmp_path, monkeypatch):
    """An objective of one's own that was changed under the same name is another plan."""
    monkeypatch.syspath_prepend(tmp_path)
    texts = []
    for factor in (1, 2):
        (tmp_path / "mine.py").write_text(f"def loss(scores, batch):\n    return {factor} * scores\n")
        config = read_flags("sft", [*FLAGS, "--objective", "mine:loss"])
        texts.append(known_by(config))
    assert texts[0]["flags"] == texts[1]["flags"]
    assert texts[0]["objective"] != texts[1]["objective"]
    assert texts[0]["model"]["num_layers"] == 28


def test_a_job_of_pairs_has_two_rows_a_record():
    assert job_of(read_flags("dpo", FLAGS), "v5e:2x4", 1, group=2).rows == 64
