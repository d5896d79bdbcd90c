"""The scalar head: transformers' rewards, read at the last token, whatever is padded; heads on language models."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_batches import make_samples, micro_batch
from tiny import CONFIG, LORA, one_device, padded, random_variables, rows

from batch import Row, RowLayout
from errors import InputError
from models.heads import last_token, score_rewards, score_values, values_by, with_reward_head
from models.hf_config import from_hf, to_hf
from models.pretrained import load_merged, open_pretrained
from models.safetensors_weights import write_hf_folder
from models.transformer import Transformer

FOLDER = Path(__file__).parents[1] / "fixtures" / "reward_model"
REWARD = dataclasses.replace(CONFIG, reward_head=True)


@pytest.fixture(scope="module")
def theirs():
    """(rows, transformers' reward of each)."""
    with np.load(FOLDER / "rewards.npz") as found:
        made = [Row(tokens[:length].astype(np.int32), np.ones(length, np.float32))
                for tokens, length in zip(found["tokens"], found["lengths"], strict=True)]
        return made, found["rewards"]


def test_rewards_equal_those_of_transformers(theirs):
    model, variables = open_pretrained(str(FOLDER)).load(one_device())
    assert model.config.reward_head
    np.testing.assert_allclose(score_rewards(model, variables, padded(theirs[0], 24)).rewards, theirs[1], atol=1e-5)


def test_what_is_written_is_what_was_read(theirs, tmp_path):
    config, params = load_merged(open_pretrained(str(FOLDER)), one_device())
    write_hf_folder(tmp_path / "out", params, config, "float32", token_ids={"pad_token_id": 0})
    model, variables = open_pretrained(str(tmp_path / "out")).load(one_device())
    np.testing.assert_allclose(score_rewards(model, variables, padded(theirs[0])).rewards, theirs[1], atol=1e-5)


def test_a_classifier_of_two_labels_is_no_reward_model():
    config = to_hf(REWARD, "float32")
    assert from_hf(config, "here").reward_head
    with pytest.raises(InputError, match="here: a classifier of 3 labels"):
        from_hf(config | {"id2label": {"0": "a", "1": "b", "2": "c"}}, "here")
    with pytest.raises(InputError, match="2 labels"):
        from_hf({name: value for name, value in config.items() if name != "id2label"}, "here")


def test_the_last_token_is_the_last_that_is_no_padding():
    assert last_token(jnp.asarray([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])).tolist() == [2, 0, 3, 0]


def test_rewards_do_not_depend_on_padding_and_fill():
    variables, batch = random_variables(LORA, config=REWARD), padded(rows([5, 9]))
    plain = score_rewards(Transformer(REWARD, LORA), variables, batch).rewards
    wide = jax.tree.map(lambda column: jnp.pad(column, ((0, 2), (0, 7))[: column.ndim]), batch)
    wide = score_rewards(Transformer(REWARD, LORA), variables, wide).rewards
    np.testing.assert_allclose(wide[:2], plain, atol=1e-5)
    assert wide[2:].tolist() == [0, 0]


def test_a_new_head_gives_nothing_and_takes_the_place_of_the_projection():
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    params = random_variables(config=untied)["params"]
    config, with_head = with_reward_head(untied, params, one_device())
    assert config.reward_head
    assert set(with_head) == set(params) - {"lm_head"} | {"reward_head"}
    assert score_rewards(Transformer(config), {"params": with_head}, padded(rows([5, 9]))).rewards.tolist() == [0, 0]
    assert with_reward_head(config, with_head, one_device()) == (config, with_head)


def test_under_lora_the_head_is_learnt_and_merged():
    """The gradient reaches the adapter's head at once, and the merged model says what the adapted one says."""
    from models.lora import merge

    variables, batch = random_variables(LORA, config=REWARD), padded(rows([5, 9]))
    model = Transformer(REWARD, LORA)

    def total(lora):
        return jnp.sum(score_rewards(model, {"params": variables["params"], "lora": lora}, batch).rewards)

    gradient = jax.grad(total)(variables["lora"])
    assert float(jnp.linalg.norm(gradient["reward_head"])) > 1
    merged = merge(variables["params"], variables["lora"], LORA.scale)
    np.testing.assert_allclose(score_rewards(Transformer(REWARD), {"params": merged}, batch).rewards,
                               score_rewards(model, variables, batch).rewards, atol=1e-4)


def test_a_value_is_of_what_came_before_its_token():
    """Not of the token itself, which the policy has not drawn then; and it is the reward of the row cut there."""
    variables, [row] = random_variables(LORA, config=REWARD), rows([9])
    model = Transformer(REWARD, LORA)
    values = score_values(model, variables, padded([row], 12)).values
    other = row._replace(tokens=np.concatenate([row.tokens[:6], (row.tokens[6:] + 1) % 64]))
    changed = score_values(model, variables, padded([other], 12)).values
    np.testing.assert_allclose(changed[0, :7], values[0, :7], atol=1e-5)
    assert abs(float(changed[0, 7] - values[0, 7])) > 1e-3
    assert values[0, 0] == 0
    assert not values[0, 9:].any()
    cut = score_rewards(model, variables, padded([row.cut(6)], 12)).rewards
    np.testing.assert_allclose(cut[0], values[0, 6], atol=1e-5)


@pytest.mark.slow
def test_values_of_rows_that_share_a_prompt_are_those_of_each_alone():
    samples = make_samples([(5, (4, 6)), (3, (2, 7))])
    variables, model = random_variables(LORA, config=REWARD), Transformer(REWARD, LORA)
    found = {}
    for row_layout in (RowLayout(), RowLayout(8, 2)):
        columns, _ = micro_batch(samples, 16, row_layout)
        values = np.asarray(values_by(row_layout)(model, variables, jax.tree.map(jnp.asarray, columns)).values)
        found[row_layout] = [row[mask != 0] for row, mask in zip(values, columns["loss_mask"])]
    for one, other in zip(*found.values()):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert one.all()
