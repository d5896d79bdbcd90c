"""The benchmark of scoring: when two sides did the same work, and that Temper's worker scores what it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import one_device

from benchmarks import pretrain_vs_transformers, score_vs_transformers, temper_score_worker
from models.pretrained import open_pretrained
from models.settings import Architecture
from models.transformer import output_kernel

CONFIG = score_vs_transformers.Config(peer_python="python", rows=3, prompt_tokens=(2, 9), completion_tokens=(1, 5))


def sides(ours, theirs):
    return {"Temper": [{"logps": ours}], "transformers": [{"logps": theirs}]}


@pytest.mark.parametrize("ours", [[[-1.0, -2.5], [-3.0]], [[-1.0, -2.0]], [[-1.0, float("nan")], [-3.0]]])
def test_other_scores_are_not_the_same_work(ours):
    with pytest.raises(SystemExit, match="did not do the same work"):
        score_vs_transformers.check_same_scores(CONFIG, sides(ours, [[-1.0, -2.0], [-2.6]]))


def test_rounding_is_the_same_work():
    score_vs_transformers.check_same_scores(CONFIG, sides([[-1.1, -2.0]], [[-1.0, -2.2]]))


def test_rows_are_of_the_lengths_given_and_the_same_each_time(tmp_path):
    settings = score_vs_transformers.make_settings(CONFIG, 50, tmp_path)
    assert settings == score_vs_transformers.make_settings(CONFIG, 50, tmp_path)
    assert all(2 <= len(each) <= 9 for each in settings["prompts"])
    assert all(1 <= len(each) <= 5 for each in settings["completions"])


@pytest.mark.slow
def test_the_worker_scores_completions_of_a_model_that_the_benchmark_of_pretraining_wrote(tmp_path):
    made = pretrain_vs_transformers.Config(trl_python="python", vocab_size=64, architecture=Architecture(
        embed_dim=16, num_layers=1, num_heads=2, tie_embeddings=True))
    pretrain_vs_transformers.write_model(made, tmp_path / "model")
    config = score_vs_transformers.Config(peer_python="python", rows=5, batch_size=2, prompt_tokens=(2, 9),
                                          completion_tokens=(1, 5), dtype="float32")
    settings = score_vs_transformers.make_settings(config, 64, tmp_path)
    result = temper_score_worker.main(settings)
    assert [len(each) for each in result["logps"]] == [len(each) for each in settings["completions"]]
    rows = list(zip(settings["prompts"], settings["completions"], strict=True))
    assert result["tokens"] == sum(len(prompt) + len(completion) for prompt, completion in rows)
    model, variables = open_pretrained(settings["model"]).load(one_device())
    for (prompt, completion), logps in zip(rows, result["logps"], strict=True):
        np.testing.assert_allclose(logps, whole_logps(model, variables, prompt + completion)[len(prompt) - 1:],
                                   atol=1e-5)


def whole_logps(model, variables, tokens):
    """log p of each token but the first, from all logits."""
    tokens, places = jnp.asarray(tokens), jnp.arange(len(tokens))
    hidden = model.apply(variables, tokens[None], places[None], jnp.ones((1, len(tokens)), int))[0]
    logps = jax.nn.log_softmax(hidden @ output_kernel(model.config, variables["params"]))
    return logps[places[:-1], tokens[1:]]
