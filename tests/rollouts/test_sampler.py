"""Sampling: the cache changes nothing, rows do not touch each other, ends are kept, and seeds are honoured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, LORA, jitted_score, one_device, padded, random_variables, variables_on

from batch import Row
from data.tokenizer import load_tokenizer
from errors import InputError
from models.lora import merge
from models.pretrained import EMBEDDED, open_pretrained
from models.transformer import Transformer, output_kernel
from rollouts import sampler
from rollouts.sampler import Ends, generate, make_ends
from rollouts.sampling import make_controls, sample
from sharding.mesh import MeshConfig, make_mesh

MODEL = Transformer(CONFIG)
PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 3], [58, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return random_variables()["params"]


def without_cache(model, params, prompt, count):
    """Greedy decoding by whole forward passes over a fixed width."""
    tokens = np.zeros((1, len(prompt) + count), np.int32)
    tokens[0, : len(prompt)] = prompt
    positions = np.arange(tokens.shape[1])[None]

    @jax.jit
    def logits(params, tokens, at):
        hidden = model.apply({"params": params}, tokens, jnp.asarray(positions), jnp.ones_like(tokens))[0, at]
        return hidden @ output_kernel(model.config, params)

    for at in range(len(prompt), tokens.shape[1]):
        tokens[0, at] = np.argmax(logits(params, jnp.asarray(tokens), at - 1))
    return tokens[0, len(prompt) :].tolist()


def greedy(model, params, prompts, count, **rest):
    return generate(model, {"params": params}, prompts, KEY, max_new_tokens=count, controls=make_controls(0.0), **rest)


def test_greedy_with_the_cache_equals_full_passes(params):
    completions = greedy(MODEL, params, PROMPTS, 64)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.tokens == without_cache(MODEL, params, prompt, 64)


def test_greedy_of_a_model_whose_head_is_not_its_embedding():
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    model, params = Transformer(config), random_variables(config=config)["params"]
    [completion] = greedy(model, params, PROMPTS[:1], 8)
    assert completion.tokens == without_cache(model, params, PROMPTS[0], 8)


@pytest.mark.slow
def test_greedy_with_the_cache_equals_full_passes_on_smollm2():
    model, variables = open_pretrained(EMBEDDED).load(one_device())
    params = variables["params"]
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    [completion] = greedy(model, params, [prompt], 64)
    assert completion.tokens == without_cache(model, params, prompt, 64)


def test_rows_do_not_touch_each_other(params):
    assert_alike(drawn(params)[:8], drawn(params, [*PROMPTS[:2], [1] * 16])[:8])


def test_the_numbers_are_the_same_on_each_mesh(params):
    alone = greedy(MODEL, params, PROMPTS, 16)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with jax.set_mesh(mesh):
        split = greedy(MODEL, variables_on(mesh)["params"], PROMPTS, 16)
    for one, other in zip(alone, split, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


def test_any_end_token_stops_and_is_kept(params):
    free = greedy(MODEL, params, PROMPTS, 16)
    ends = (free[0].tokens[5], free[2].tokens[3])
    for before, after in zip(free, greedy(MODEL, params, PROMPTS, 16, ends=Ends(ends)), strict=True):
        stops = [at for at, token in enumerate(before.tokens) if token in ends]
        assert after.finish_reason == ("stop" if stops else "length")
        assert after.tokens == before.tokens[: stops[0] + 1 if stops else None]
        assert len(after.logps) == len(after.tokens)


def test_seeds_repeat_and_differ(params):
    def drawn(seed):
        return [each.tokens for each in generate(MODEL, {"params": params}, PROMPTS, jax.random.key(seed),
                                                 max_new_tokens=12, controls=make_controls())]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    same_prompt = generate(MODEL, {"params": params}, [PROMPTS[0]] * 2, KEY, max_new_tokens=12,
                           controls=make_controls())
    assert same_prompt[0].tokens != same_prompt[1].tokens


def test_logps_are_those_of_the_tempered_distribution(params):
    temperature = 0.5
    [completion] = generate(MODEL, {"params": params}, PROMPTS[:1], KEY, max_new_tokens=8,
                            controls=make_controls(temperature))
    tokens = jnp.asarray([PROMPTS[0] + completion.tokens])
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = MODEL.apply({"params": params}, tokens, positions, jnp.ones_like(tokens))[0]
    logps = jax.nn.log_softmax(hidden @ output_kernel(CONFIG, params) / temperature)
    start = len(PROMPTS[0])
    expected = [float(logps[start - 1 + i, token]) for i, token in enumerate(completion.tokens)]
    np.testing.assert_allclose(completion.logps, expected, atol=1e-4)


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
    keys = jax.random.split(jax.random.key(3), 4000)
    tokens, _ = sample(jnp.broadcast_to(logits, (4000, 3)), keys, make_controls())
    np.testing.assert_allclose(np.bincount(tokens, minlength=3) / 4000, [0.5, 0.3, 0.2], atol=0.03)


def test_temperature_does_not_recompile(params):
    greedy(MODEL, params, PROMPTS, 4)
    compiled = sampler._decode._cache_size()
    generate(MODEL, {"params": params}, PROMPTS, KEY, max_new_tokens=4, controls=make_controls(0.3))
    assert sampler._decode._cache_size() == compiled


def test_lora_is_sampled_as_it_was_trained(params):
    variables = random_variables(LORA)
    [adapted] = generate(Transformer(CONFIG, LORA), variables, PROMPTS[:1], KEY, max_new_tokens=16,
                         controls=make_controls(0.0))
    merged = merge(variables["params"], variables["lora"], LORA.scale)
    assert adapted.tokens == greedy(MODEL, merged, PROMPTS[:1], 16)[0].tokens
    assert adapted.tokens != greedy(MODEL, variables["params"], PROMPTS[:1], 16)[0].tokens


def test_an_empty_prompt_is_refused(params):
    with pytest.raises(InputError, match="no tokens"):
        greedy(MODEL, params, [[3], []], 4)


def test_what_does_not_fit_the_context_is_refused(params):
    with pytest.raises(InputError, match="do not fit the model's context of 256"):
        greedy(MODEL, params, [[1] * 200], 57)


# ------------------------------------------------------------------------------------------------ groups and slots

def drawn(params, prompts=PROMPTS, **rest):
    return generate(MODEL, {"params": params}, prompts, KEY, controls=make_controls(), longest=(16, 24),
                    **{"max_new_tokens": 24, "ends": Ends((1, 2)), "group_size": 4} | rest)


def assert_alike(some, others):
    for one, other in zip(some, others, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 5, 16])
def test_completions_do_not_depend_on_slots(params, slots):
    limits = [1, 24, 3, 9, 2, 24, 5, 5, 20, 1, 7, 12]
    whole = drawn(params, max_new_tokens=limits, slots=12)
    assert [len(each.tokens) <= limit for each, limit in zip(whole, limits, strict=True)] == [True] * 12
    assert_alike(drawn(params, max_new_tokens=limits, slots=slots), whole)


def test_a_group_is_as_its_prompt_repeated(params):
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    assert_alike(drawn(params), drawn(params, repeated, group_size=1))


def test_each_prompt_is_prefilled_once(params, monkeypatch):
    read = []
    prefill = sampler._prefill
    monkeypatch.setattr(sampler, "_prefill", lambda model, weights, tokens: read.append(tokens) or
                        prefill(model, weights, tokens))
    drawn(params, slots=3)
    firsts = sorted(row[0] for tokens in read for row in tokens.tolist() if any(row))
    assert firsts == sorted(prompt[0] for prompt in PROMPTS)


def test_mixed_lengths_compile_few_shapes(params):
    before = sampler._prefill._cache_size(), sampler._decode._cache_size()
    for length in (3, 5, 9, 11, 13, 16):
        drawn(params, [[4] * length], slots=2)
    assert sampler._prefill._cache_size() - before[0] <= 2
    assert sampler._decode._cache_size() - before[1] <= 1


def test_sampled_numbers_are_the_same_on_each_mesh(params):
    alone = drawn(params, slots=16)
    for config in (MeshConfig(8), MeshConfig(1, 8), MeshConfig(2, 2, 2)):
        mesh = make_mesh(config)
        with jax.set_mesh(mesh):
            assert_alike(generate(MODEL, {"params": variables_on(mesh)["params"]}, PROMPTS, KEY, max_new_tokens=24,
                                  controls=make_controls(), ends=Ends((1, 2)), group_size=4, slots=16,
                                  longest=(16, 24)), alone)


def decode(tokens):
    return "".join(chr(ord("0") + token) for token in tokens)


@pytest.mark.parametrize("slots", [5, 12])
def test_a_stop_string_ends_at_the_token_that_completes_it(params, slots):
    free = drawn(params, ends=Ends())
    string = decode(free[5].tokens[8:10])
    stopped = drawn(params, ends=Ends((), (string,), decode), slots=slots)
    for before, after in zip(free, stopped, strict=True):
        place = decode(before.tokens).find(string)
        assert after.finish_reason == ("length" if place < 0 else "stop")
        assert after.tokens == before.tokens[: None if place < 0 else place + len(string)]
        assert len(after.logps) == len(after.tokens)


def test_stop_strings_that_are_special_tokens_end_by_their_id():
    tokenizer = load_tokenizer(open_pretrained(EMBEDDED).tokenizer)
    ends = make_ends(tokenizer, ("<|im_start|>", "ab"))
    assert list(ends.ids) == [*tokenizer.eos_ids, *tokenizer.encode("<|im_start|>")]
    assert ends.strings == ["ab"]
    with pytest.raises(InputError, match="a stop string is empty"):
        make_ends(tokenizer, ("",))


@pytest.mark.parametrize("longest", [(4, 24), (16, 8)])
def test_what_is_longer_than_the_longest_is_refused(params, longest):
    with pytest.raises(ValueError, match="longest is"):
        generate(MODEL, {"params": params}, PROMPTS, KEY, controls=make_controls(), max_new_tokens=24, longest=longest)


def test_the_few_that_are_left_move_to_fewer_slots(params, monkeypatch):
    rows, decode = [], sampler._decode
    monkeypatch.setattr(sampler, "_decode", lambda model, weights, state, *rest: rows.append(len(state.done)) or
                        decode(model, weights, state, *rest))
    limits = [2, 24] + [3] * 10
    assert_alike(drawn(params, max_new_tokens=limits, ends=Ends(), slots=12),
                 drawn(params, max_new_tokens=limits, ends=Ends(), slots=5))
    assert rows[:2] == [12, 8]


def test_what_is_done_is_told(params):
    told = []
    drawn(params, slots=3, advance=told.append)
    assert sum(told) == 12
    assert len(told) > 1


def test_sampler_and_scorer_agree(params):
    """The log-probabilities of the same tokens: cached decoding against a whole pass."""
    completions = drawn(params)
    asked = [prompt for prompt in PROMPTS for _ in range(4)]
    rows = [Row(np.asarray(prompt + each.tokens, np.int32), np.zeros(len(prompt + each.tokens), np.float32))
            for prompt, each in zip(asked, completions, strict=True)]
    logps = jitted_score(MODEL, {"params": params}, padded(rows)).logps
    differences = np.concatenate([logps[row, len(prompt) : len(prompt) + len(each.tokens)] - np.asarray(each.logps)
                                  for row, (prompt, each) in enumerate(zip(asked, completions, strict=True))])
    assert np.mean(np.abs(differences)) < 1e-5
    assert np.max(np.abs(differences)) < 1e-4
