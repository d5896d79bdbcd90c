"""A run opened as a model: its policy, or its critic."""

import dataclasses

import pytest
import tiny

from errors import InputError
from training.runs import open_critic, open_model, start


@pytest.fixture
def run(tmp_path):
    def run(critic):
        lora = {"rank": 0}
        start(tmp_path / "run", {"model": "gone", "lora": lora, "critic": {"model": critic, "lora": lora}}, tiny.CONFIG,
              None)
        return str(tmp_path / "run")

    return run


def test_the_critic_of_a_run_needs_no_other_model_than_it_was_begun_as(run):
    """All of its weights are in the run, as the policy's are."""
    opened = open_critic(run(None))
    assert opened.config == dataclasses.replace(open_model(str(opened.path)).config, reward_head=True)
    assert (opened.item, opened.lora) == ("critic", None)


def test_a_critic_that_was_begun_as_a_model_that_is_gone_is_one_line(run):
    with pytest.raises(InputError, match="model 'nowhere': no such file or folder"):
        open_critic(run("nowhere"))
