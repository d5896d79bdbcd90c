"""A tiny language model with random weights whose tokens are characters, and it as what is judged."""

import jax
from chat_model import CHARACTERS
from tiny import boxed_variables, one_device, random_variables

from evals.subject import Subject
from models.config import ModelConfig
from models.transformer import Transformer

CONFIG = ModelConfig(vocab_size=97, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
                     max_length=24, tie_embeddings=True)
MODEL = Transformer(CONFIG)
TEMPLATE = ("{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}")


class Characters:
    """A token a character; the end token is 0, BOS 1, which the tokenizer may begin texts with when it is asked to."""

    vocab_size, bos_id, eos_id, eos_ids, bos_token, eos_token = 97, 1, 0, (0,), "<b>", "<end>"

    def __init__(self, adds_bos=False, chat_template=None):
        self.adds_bos, self.chat_template = adds_bos, chat_template

    def encode(self, text, add_special_tokens=False):
        start = [1] if (add_special_tokens and self.adds_bos) else []
        bos, text = ([1], text[3:]) if text.startswith("<b>") else ([], text)
        return start + bos + [CHARACTERS.index(each) + 2 if each in CHARACTERS else 2 for each in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(CHARACTERS[each - 2] if each > 1 else "" for each in ids)


def weights(seed=0):
    shardings = one_device().tree_shardings(boxed_variables(config=CONFIG))
    return jax.device_put(random_variables(seed=seed, config=CONFIG), shardings)


def subject_of(tokenizer=None, **settings):
    made = Subject(MODEL, tokenizer or Characters(), one_device(), num_slots=4, **settings)
    made.load(weights())
    return made
