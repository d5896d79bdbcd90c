"""A model without the layout of what it computes with is refused wherever a step, an evaluation or a scorer is made."""


import jax
import optax
import pytest
from tiny import CONFIG, variables_on

from errors import InputError
from evals.likelihood import make_scorer
from models.scoring import score, score_by
from models.transformer import Transformer
from objectives.dpo import configure
from objectives.sft import sft
from sharding.mesh import MeshConfig, make_layout
from training.critic import prepare_values
from training.evaluation import make_row_scorer
from training.reference import prepare_labelled, prepare_pairs, prepare_rollouts
from training.state import init_state
from training.step import make_accumulated_step, make_eval_step, make_train_step

OPTIMIZER, SCHEDULE = optax.sgd(0.1), optax.constant_schedule(0.1)
MAKE = {
    "train step": lambda model, layout, state: make_train_step(model, sft, OPTIMIZER, SCHEDULE, state),
    "accumulated step": lambda model, layout, state: make_accumulated_step(
        model, sft, OPTIMIZER, SCHEDULE, state, score_by),
    "eval step": lambda model, layout, state: make_eval_step(model, sft, layout),
    "scores of rows": lambda model, layout, state: make_row_scorer(model, 8, layout, score, 16),
    "likelihoods": lambda model, layout, state: make_scorer(model, layout),
    "reference of pairs": lambda model, layout, state: prepare_pairs(model, None, layout, configure()),
    "reference of labelled rows": lambda model, layout, state: prepare_labelled(model, model, None, layout),
    "reference of rollouts": lambda model, layout, state: prepare_rollouts(model, None, None, layout, score_by, True),
    "values": lambda model, layout, state: prepare_values(model, layout)}


@pytest.fixture(scope="module")
def layout():
    return make_layout(MeshConfig(1, 4, 2))


@pytest.fixture(scope="module")
def state(layout):
    model = Transformer(CONFIG, layout=layout)
    return init_state(model, variables_on(layout)["params"], OPTIMIZER, jax.random.key(0), layout)


@pytest.mark.parametrize("name", MAKE)
def test_it_is_refused_at_once(name, layout, state):
    for other in (None, make_layout(MeshConfig(2, 2, 2))):
        with pytest.raises(InputError, match="the arrays lie on the mesh slice 1 data 1 fsdp 4 tensor 2 and the model"):
            MAKE[name](Transformer(CONFIG, layout=other), layout, state)
    MAKE[name](Transformer(CONFIG, layout=layout), layout, state)
