"""A reward model as a reward function: the scores of scripts.score, strings and chats, in any batch."""

import json

import jax
import numpy as np
import pytest
from tiny import one_device

from data.tokenizer import load_tokenizer
from errors import InputError
from models.architecture import Architecture, make_config, random_params
from models.heads import with_reward_head
from models.pretrained import EMBEDDED, locate
from models.safetensors_weights import write_hf_folder
from rewards.learned import load_reward_model

CHATS = [([{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": answer}])
         for answer in ("Hello there", "Go away", "Hm")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random reward model with a real tokenizer."""
    made, tokenizer = tmp_path_factory.mktemp("models") / "reward", load_tokenizer(locate(EMBEDDED))
    config = make_config(Architecture(embed_dim=16, num_layers=1, num_heads=2, max_length=64), tokenizer.vocab_size)
    config, params = with_reward_head(config, random_params(config, jax.random.key(0), one_device()), one_device())
    head = jax.random.normal(jax.random.key(1), params["reward_head"].shape)
    write_hf_folder(made, params | {"reward_head": head}, config, "float32")
    tokenizer.save(made)
    return made


def test_rewards_are_those_of_the_score_script(folder, tmp_path, monkeypatch):
    from scripts import score

    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in [*CHATS, ("The sky is", " blue.")]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = (score.DataSource(str(tmp_path / "rows.jsonl")),)
    score.main(score.Config(str(folder), sources, str(tmp_path / "out.jsonl"), dtype="float32"))
    expected = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    reward = load_reward_model(str(folder), one_device(), batch_size=2)
    chats = reward([prompt for prompt, _ in CHATS], [completion for _, completion in CHATS], answer=["x"] * 3)
    np.testing.assert_allclose(chats + reward(["The sky is"], [" blue."]), expected, atol=2e-2)  # bfloat16 here
    assert len(set(expected)) == 4
    assert reward([], []) == []


def test_what_is_no_reward_model_or_does_not_fit(folder):
    with pytest.raises(InputError, match="is a language model, which has no reward head"):
        load_reward_model(EMBEDDED)
    with pytest.raises(InputError, match="longer than its context of 64"):
        load_reward_model(str(folder), one_device())(["a "] , ["b " * 100])
