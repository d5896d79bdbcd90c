"""Sampling: the cache changes nothing, rows do not touch each other, ends are kept, and seeds are honoured."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, LORA, jitted_score, one_device, padded, random_variables, variables_on

from batch import Row
from data.tokenizer import load_tokenizer
from errors import InputError
from models.decoding import layer_groups
from models.lora import merge
from models.pretrained import EMBEDDED, open_pretrained
from models.transformer import Transformer, output_kernel
from rollouts import decoder
from rollouts.engine import Engine, Request
from rollouts.generate import generate as generate_with
from rollouts.layout import DEFAULT
from rollouts.sampling import make_controls, sample
from rollouts.stops import Ends, make_ends
from sharding.mesh import MeshConfig, make_layout

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


def generate(model, variables, prompts, key, *, slots=16, page=8, capacity=None, layout=None, sampling=DEFAULT, **rest):
    engine = Engine(model, slots, capacity, page, layout, sampling)
    engine.load(variables)
    return generate_with(engine, prompts, key, **rest)


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
    layout = make_layout(MeshConfig(2, 2, 2))
    split = greedy(MODEL, variables_on(layout)["params"], PROMPTS, 16, layout=layout)
    for one, other in zip(alone, split, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


def test_layers_in_a_loop_give_the_same_numbers(params, monkeypatch):
    """As in bfloat16 on CPUs."""
    apart = greedy(MODEL, params, PROMPTS, 16)
    assert len(layer_groups(CONFIG, None)) == CONFIG.num_layers > 1
    for module in ("models.decoding", "rollouts.layout"):
        monkeypatch.setattr(f"{module}.layer_groups", lambda config, layout: [range(config.num_layers)])
    model = Transformer(dataclasses.replace(CONFIG, family="mistral"))  # computes the same, is prepared anew
    layout = make_layout(MeshConfig(2, 2, 2))
    stacked = greedy(model, variables_on(layout)["params"], PROMPTS, 16, layout=layout)
    for one, other in zip(apart, stacked, strict=True):
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


def test_controls_and_lengths_compile_nothing_anew(params):
    engine = Engine(MODEL, 2, capacity=600, page=8)
    engine.load({"params": params})

    def sizes():
        return [each._cache_size() for each in (decoder.decode, decoder.prefill, decoder.copy_pages, decoder.admit)]

    def answer(**controls):
        generate_with(engine, [[4] * 90, [4] * 3], KEY, max_new_tokens=6, controls=make_controls(**controls))

    answer(), answer(repetition_penalty=1.3)
    for length in (20, 50, 100, 120):  # parts of a context, and few pages or many
        generate_with(engine, [[4] * length] * 2, KEY, max_new_tokens=4, controls=make_controls())
    compiled = sizes()
    for controls in ({"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}, {"presence_penalty": 1.0}):
        answer(**controls)
    for length in (1, 5, 9, 11, 13, 16, 31, 100):
        generate_with(engine, [[4] * length], KEY, max_new_tokens=length, controls=make_controls())
    assert sizes() == compiled


def test_an_engine_that_is_warm_compiles_nothing(params):
    """Contexts of 1 to 250 tokens, alone and together."""
    engine = Engine(MODEL, 12, capacity=4096, page=8)
    engine.load({"params": params})
    engine.warm_up(250)
    compiled = decoder.decode._cache_size(), decoder.prefill._cache_size(), decoder.copy_pages._cache_size()
    random = np.random.default_rng(0)
    for count in (1, 5, 16):
        prompts = [random.integers(1, 60, length).tolist() for length in random.integers(1, 200, count)]
        prompts += [[*prompt, 3] for prompt in prompts]
        generate_with(engine, prompts, KEY, max_new_tokens=50, controls=make_controls())
    assert (decoder.decode._cache_size(), decoder.prefill._cache_size(), decoder.copy_pages._cache_size()) == compiled


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
    return generate(MODEL, {"params": params}, prompts, KEY, controls=make_controls(),
                    **{"max_new_tokens": 24, "ends": Ends((1, 2)), "group_size": 4} | rest)


def assert_alike(some, others):
    for one, other in zip(some, others, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


@pytest.mark.parametrize("slots", [2, 16, *(pytest.param(slots, marks=pytest.mark.slow) for slots in (1, 5))])
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
    prefill = decoder.prefill
    monkeypatch.setattr(decoder, "prefill", lambda model, weights, cache, tokens, positions, table: read.extend(
        tokens[positions >= 0].tolist()) or prefill(model, weights, cache, tokens, positions, table))
    drawn(params, slots=3, capacity=4000)
    assert sorted(read) == sorted(token for prompt in PROMPTS for token in prompt[:-1])


@pytest.mark.slow
def test_sampled_numbers_are_the_same_on_each_mesh(params):
    alone = drawn(params, slots=16)
    for config in (MeshConfig(8), MeshConfig(1, 8), MeshConfig(2, 2, 2)):
        layout = make_layout(config)
        assert_alike(generate(MODEL, {"params": variables_on(layout)["params"]}, PROMPTS, KEY, max_new_tokens=24,
                              controls=make_controls(), ends=Ends((1, 2)), group_size=4, slots=16, layout=layout),
                     alone)


@pytest.mark.parametrize("config", [pytest.param(MeshConfig(1, 8), marks=pytest.mark.slow),
                                    MeshConfig(1, 2, 2, slice=2)])
def test_no_weight_is_exchanged_while_decoding(params, monkeypatch, config):
    """Of a model trained over fsdp, read from what is compiled."""
    texts, decode = [], decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *given: texts.append(decode.lower(*given).compile().as_text()) or
                        decode(*given))
    layout = make_layout(config)
    generate(MODEL, {"params": variables_on(layout)["params"]}, PROMPTS, KEY, max_new_tokens=2, layout=layout,
             controls=make_controls(), slots=4)
    exchanged = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute|all-reduce)", texts[0])
    assert exchanged  # of activations, as heads are split
    smallest = CONFIG.embed_dim * CONFIG.num_kv_heads * CONFIG.head_dim  # elements of the smallest kernel
    shapes = [tuple(map(int, shape.split(","))) for shape in exchanged if shape]
    assert [shape for shape in shapes if math.prod(shape) >= smallest and shape[0] != 8] == []  # but those of all rows


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


def test_the_few_that_are_left_are_decoded_as_few(params, monkeypatch):
    rows, decode = [], decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda model, weights, cache, seen, at, *rest: rows.append(len(at.slot)) or
                        decode(model, weights, cache, seen, at, *rest))
    limits = [2, 24] + [3] * 10
    assert_alike(drawn(params, max_new_tokens=limits, ends=Ends(), slots=12),
                 drawn(params, max_new_tokens=limits, ends=Ends(), slots=5))
    assert rows[0] == 12
    assert 8 in rows


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


# ------------------------------------------------------------------------------------------------------- the engine

def engine_of(params, slots=4, **rest):
    engine = Engine(MODEL, slots, **{"page": 8} | rest)
    engine.load({"params": params})
    return engine


def run(engine, ids):
    """What came of each request: (tokens, logps, reason)."""
    found = {identity: ([], [], None) for identity in ids}
    while engine.busy:
        for output in engine.step():
            tokens, logps, _ = found[output.id]
            found[output.id] = (tokens + output.tokens, logps + output.logps, output.finish_reason)
    return [found[identity] for identity in ids]


def request(prompt, count=12, key=0, **rest):
    return Request(prompt, count, jax.random.key(key), **rest)


def same(some, others):
    for (tokens, logps, reason), (expected, others_logps, others_reason) in zip(some, others, strict=True):
        assert (tokens, reason) == (expected, others_reason)
        np.testing.assert_allclose(logps, others_logps, atol=1e-5)


@pytest.fixture(scope="module")
def alone(params):
    """Requests, and what each is answered by an engine of its own."""
    prompts = [PROMPTS[0], PROMPTS[2] * 3, [7] * 70, PROMPTS[1], list(range(3, 40))]
    requests = [request(prompt, 20, key) for key, prompt in enumerate(prompts)]
    answers = []
    for each in requests:
        engine = engine_of(params, 1)
        answers += run(engine, engine.submit([each]))
    return requests, answers


def test_requests_may_come_at_any_time(params, alone):
    requests, answers = alone
    engine = engine_of(params, 2)
    ids, found = engine.submit(requests[:1]), {}
    for later in [*requests[1:], None]:
        for output in engine.step():
            found.setdefault(output.id, []).extend(output.tokens)
        ids += engine.submit([later]) if later else []
    rest = run(engine, ids)
    assert [found.get(identity, []) + tokens for identity, (tokens, _, _) in zip(ids, rest)] == [
        tokens for tokens, _, _ in answers]


@pytest.mark.parametrize("capacity", [96, *(pytest.param(tokens, marks=pytest.mark.slow) for tokens in (160, 4000))])
def test_a_small_cache_changes_no_answer(params, alone, capacity):
    """Where pages run out, the youngest wait with what they have drawn."""
    requests, answers = alone
    engine = engine_of(params, 4, capacity=capacity)
    same(run(engine, engine.submit(requests)), answers)
    assert engine._slots.num_pages * 8 <= capacity + 8


def test_where_there_is_no_page_beside_the_one_gone_on_from_it_is_given_up(params):
    """A cache of one page, and a context that begins like the one it holds."""
    prompts = [PROMPTS[1], [*PROMPTS[1], 7]]
    same = [greedy(MODEL, params, prompts, 2, slots=1, capacity=capacity) for capacity in (8, None)]
    assert [each.tokens for each in same[0]] == [each.tokens for each in same[1]]


def test_the_cache_holds_what_there_is(params):
    engine = engine_of(params, 4)
    before = engine.cache_bytes
    run(engine, engine.submit([request([3, 4], 200)]))  # of which few are drawn at a time
    assert engine.cache_bytes <= before * 16
    assert before < engine.cache_bytes


def test_a_further_turn_goes_on_from_the_cache(params, monkeypatch):
    read, prefill = [], decoder.prefill
    monkeypatch.setattr(decoder, "prefill", lambda model, weights, cache, tokens, positions, table: read.append(
        int(np.sum(positions >= 0))) or prefill(model, weights, cache, tokens, positions, table))
    engine = engine_of(params)
    prompt = list(range(3, 33))
    [(tokens, _, _)] = run(engine, engine.submit([request(prompt)]))
    further = [*prompt, *tokens, 9, 8, 7]
    read.clear()
    found = run(engine, engine.submit([request(further, key=1)]))
    assert read == [3]  # the last token drawn was not read yet, and the very last is when the next is drawn
    fresh = engine_of(params)
    same(found, run(fresh, fresh.submit([request(further, key=1)])))
    engine.load({"params": jax.tree.map(lambda x: x * 1.01, params)})  # other weights: nothing is gone on from
    read.clear()
    run(engine, engine.submit([request(further)]))
    assert sum(read) == len(further) - 1


def test_what_is_forgotten_is_read_again(params, monkeypatch):
    """And what is on its way goes on."""
    read, prefill = [], decoder.prefill
    monkeypatch.setattr(decoder, "prefill", lambda model, weights, cache, tokens, positions, table: read.append(
        int(np.sum(positions >= 0))) or prefill(model, weights, cache, tokens, positions, table))
    engine = engine_of(params)
    ids = engine.submit([request([7] * 20, 40)])
    outputs = engine.step()
    engine.forget()
    [(tokens, _, _)] = run(engine, ids)
    assert len(tokens) + sum(len(each.tokens) for each in outputs) == 40
    run(engine, engine.submit([request([7] * 20, 2)]))
    run(engine, engine.submit([request([7] * 20, 2)]))
    assert read == [19, 19]


def test_cancelled_requests_are_gone_and_others_go_on(params, alone):
    requests, answers = alone
    engine = engine_of(params, 2)
    ids = engine.submit([request([9] * 3, 200), *requests])
    engine.step()
    engine.cancel([ids[0], ids[-1], 999])
    engine.cancel([ids[0]])
    found = run(engine, ids)
    assert found[0][2] is None
    assert found[-1] == ([], [], None)
    assert [found[at][0][-3:] for at in (2, 3, 4)] == [answers[at - 1][0][-3:] for at in (2, 3, 4)]
    assert not engine._slots.running


def test_each_row_has_its_own_controls(params):
    controls = [make_controls(0.0), make_controls(), make_controls(0.7, top_k=3), make_controls(top_p=0.5),
                make_controls(min_p=0.2), make_controls(repetition_penalty=1.5), make_controls(presence_penalty=2.0),
                make_controls(frequency_penalty=0.5)]
    requests = [request(PROMPTS[0], key=key, controls=each) for key, each in enumerate(controls)]
    together = engine_of(params, 8)
    found = run(together, together.submit(requests))
    for each, answer in zip(requests, found, strict=True):
        engine = engine_of(params, 1)
        same(run(engine, engine.submit([each])), [answer])


def test_penalties_are_those_of_a_whole_pass(params):
    controls = make_controls(0.0, repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2)
    engine = engine_of(params)
    [(tokens, _, _)] = run(engine, engine.submit([request(PROMPTS[0], 24, controls=controls)]))
    context, made = list(PROMPTS[0]), []
    forward = jax.jit(lambda ids: MODEL.apply({"params": params}, ids, jnp.arange(30)[None], jnp.ones_like(ids))
                      @ output_kernel(CONFIG, params))
    for _ in range(24):
        ids = jnp.asarray([(context + made + [0] * 30)[:30]])
        logits = np.array(forward(ids)[0, len(context + made) - 1], np.float64)
        for token in set(context + made):
            logits[token] = logits[token] / 1.4 if logits[token] > 0 else logits[token] * 1.4
        for token in set(made):
            logits[token] -= 0.3 + 0.2 * made.count(token)
        made.append(int(np.argmax(logits)))
    assert tokens == made


def test_biases_and_masks_hold_for_each_token(params):
    engine = engine_of(params)
    allowed = [5, 6, 7]

    def mask(tokens):
        wanted = np.zeros(CONFIG.vocab_size, bool)
        wanted[allowed[len(tokens) % 3]] = True
        return wanted

    found = run(engine, engine.submit([request(PROMPTS[0], 7, mask=mask), request(PROMPTS[0], 7),
                                       request(PROMPTS[1], 5, logit_bias={11: 1e8}),
                                       request(PROMPTS[1], 5, controls=make_controls(0.0), logit_bias={11: -1e8})]))
    assert found[0][0] == [5, 6, 7, 5, 6, 7, 5]
    assert found[2][0] == [11] * 5
    engine = engine_of(params)
    same([found[1]], run(engine, engine.submit([request(PROMPTS[0], 7)])))


def test_the_likeliest_tokens_are_told(params):
    engine = engine_of(params)
    [identity, _] = engine.submit([request(PROMPTS[0], 3, num_likeliest=4), request(PROMPTS[1], 3)])
    outputs = []
    while engine.busy:
        outputs += [output for output in engine.step() if output.id == identity]
    ids = jnp.asarray([PROMPTS[0]])
    logps = jax.nn.log_softmax(MODEL.apply({"params": params}, ids, jnp.arange(6)[None], jnp.ones_like(ids))[0, -1]
                               @ output_kernel(CONFIG, params))
    first = outputs[0].likeliest[0]
    assert list(first) == np.argsort(-logps)[:4].tolist()
    np.testing.assert_allclose(list(first.values()), np.sort(logps)[::-1][:4], atol=1e-4)
    assert sum(len(output.likeliest) for output in outputs) == 3


def test_log_probabilities_without_the_controls_are_told_beside_the_likeliest(params):
    engine = engine_of(params)
    asked = request(PROMPTS[0], 6, controls=make_controls(0.5, top_k=3), num_likeliest=20, logit_bias={7: 2.0})
    [identity] = engine.submit([asked])
    found = []
    while engine.busy:
        for output in engine.step():
            found += zip(output.tokens, output.logps, output.plain_logps, output.likeliest, strict=True)
    assert identity is not None
    assert len(found) == 6
    for token, logp, plain, likeliest in found:
        assert plain != pytest.approx(logp, abs=1e-3)
        assert likeliest.get(token, plain) == pytest.approx(plain, abs=1e-6)
    assert any(token in likeliest for token, _, _, likeliest in found)


def test_a_step_may_be_short(params, alone):
    """And read a part of the contexts alone where that is asked for: nobody's answer is another."""
    requests, answers = alone
    engine = engine_of(params)
    ids, found = engine.submit([request([*range(60)] * 4, 2), *requests]), {}
    while engine.busy:
        for output in engine.step(max_tokens=3, read_all=False):
            assert len(output.tokens) <= 3
            found.setdefault(output.id, []).extend(output.tokens)
    assert [found[identity] for identity in ids[1:]] == [tokens for tokens, _, _ in answers]


def test_a_short_step_reads_one_part(params):
    engine = engine_of(params)
    engine.submit([request([*range(60)] * 4, 2)])
    assert engine.step(max_tokens=1, read_all=False) == []
    assert len(engine.step(max_tokens=1, read_all=False)) == 1


def broken(made, **change):
    """With what its types do not allow."""
    for name, value in change.items():
        object.__setattr__(made, name, value)
    return made


def ends(ids=(), strings=(), text=None):
    return {"ends": broken(Ends(), ids=ids, strings=strings, decode=text)}


def control(**change):
    return {"controls": make_controls()._replace(**change)}


@pytest.mark.parametrize(("change", "message"), [
    ({"tokens": []}, "no tokens"), ({"tokens": [1] * 200, "max_new_tokens": 57}, "context of 256"),
    ({"tokens": [1] * 60, "max_new_tokens": 60}, "a cache of 104 positions"), ({"tokens": [3, 10**6]}, "token 1000000"),
    ({"tokens": [3, -1]}, "token -1"), ({"tokens": [3, 2**70]}, "whole numbers"), ({"tokens": [1.0]}, "whole numbers"),
    ({"tokens": [[1], [2, 3]]}, "whole numbers"), ({"tokens": "ab"}, "whole numbers"), ({"tokens": None}, "whole num"),
    ({"tokens": 5}, "whole numbers"), ({"tokens": np.ones((2, 2), int)}, "whole numbers"),
    ({"max_new_tokens": 0}, "give 1 or more"), ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
    ({"max_new_tokens": np.nan}, "max_new_tokens is nan"), ({"max_new_tokens": None}, "max_new_tokens is None"),
    ({"key": 5}, "no key of jax.random"), ({"key": None}, "no key"), ({"key": np.zeros(4, np.uint32)}, "no key"),
    ({"key": jax.random.split(jax.random.key(0), 3)}, "no key"), ({"key": jax.random.key(0, impl="rbg")}, "no key"),
    (ends(range(9)), "9 end tokens"), (ends((1.5,)), "end tokens: token ids are whole"),
    (ends((-1,)), "end tokens has token -1"), (ends((2**31,)), "end tokens has token 2147483648"),
    (ends((), "ab", decode), "give a list of strings"),
    (ends((), ("",), decode), "a character or more"), (ends((), (3,), decode), "list of strings"),
    (ends((), ("a",)), "give Ends.decode"), ({"num_likeliest": 21}, "0 to 20"),
    ({"num_likeliest": -1}, "0 to 20"), ({"num_likeliest": 1.0}, "num_likeliest is 1.0"),
    (control(temperature=np.nan), "temperature must be 0"), (control(temperature=-1), "temperature must be 0"),
    (control(temperature=1e39), "temperature must be 0"), (control(temperature="1"), "temperature must be a number"),
    (control(temperature=None), "temperature must be a number"), (control(temperature=[1.0]), "must be a number"),
    (control(top_k=-1), "top-k must be 0"), (control(top_k=1.5), "top-k must be a whole number"),
    (control(top_k=2**31), "top-k must be"), (control(top_p=0), "top-p must be above 0"),
    (control(top_p=np.nan), "top-p must be"), (control(top_p=1.1), "top-p must be"), (control(min_p=-0.1), "min-p"),
    (control(min_p=np.inf), "min-p"), (control(repetition_penalty=0), "repetition-penalty must be from 0.0078125"),
    (control(repetition_penalty=np.inf), "repetition-penalty"), (control(presence_penalty=1e39), "presence-penalty"),
    (control(frequency_penalty=-np.inf), "frequency-penalty"), (control(frequency_penalty=np.nan), "frequency-penalty"),
    ({"logit_bias": {64: 1.0}}, "a logit bias has token 64"), ({"logit_bias": {-1: 1.0}}, "has token -1"),
    ({"logit_bias": {1: np.nan}}, "a logit bias must be a number"), ({"logit_bias": {1: np.inf}}, "must be a number"),
    ({"logit_bias": {1: "2"}}, "must be a number"), ({"logit_bias": {"1": 2}}, "whole numbers"),
    ({"logit_bias": [(1, 2.0)]}, "no mapping"), ({"mask": 3}, "a mask is no function")])
def test_bad_requests_are_told_and_others_go_on(small_engine, change, message):
    [identity] = small_engine.submit([request([3], 4)])
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        small_engine.submit([request([4]), broken(request([3], 4), **change)])
    assert "\n" not in str(refused.value)
    small_engine.cancel([identity, identity, 10**9, -1])
    assert not small_engine.busy


@pytest.fixture(scope="module")
def small_engine(params):
    return engine_of(params, 2, capacity=100)


def test_nothing_is_a_list_of_requests_too(small_engine):
    assert small_engine.submit([]) == small_engine.step() == []
    small_engine.cancel([])


def test_weights_come_first(params):
    engine = Engine(MODEL, 4, page=8)
    ids = engine.submit([request(PROMPTS[0])])
    with pytest.raises(InputError, match="has no weights"):
        engine.step()
    engine.load({"params": params})
    assert [reason for _, _, reason in run(engine, ids)] == ["length"]


@pytest.mark.parametrize("sizes", [{"num_slots": 0}, {"num_slots": -3}, {"capacity": 0}, {"page": 0},
                                   {"capacity": -5}])
def test_an_engine_of_nothing_is_refused(sizes):
    with pytest.raises(InputError, match=f"{next(iter(sizes))} is .*; give 1 or more"):
        Engine(MODEL, **sizes)


def test_a_cache_for_which_there_is_no_memory_is_one_line(monkeypatch):
    def exhausted(*given):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(decoder, "init_cache", exhausted)
    with pytest.raises(InputError, match="^a cache of 512 positions for 4 slots does not fit the memory"):
        Engine(MODEL, 4)


def raising(tokens):
    if len(tokens) == 2:
        raise ValueError("no rule\nfor this")
    return np.ones(CONFIG.vocab_size, bool)


@pytest.mark.parametrize(("change", "message", "count"), [
    ({"mask": raising}, "its mask failed after 2 tokens (ValueError: no rule for this)", 2),
    ({"mask": lambda tokens: np.ones(3, bool)}, "its mask gave bool (3,) after 0 tokens, and not bool (64,)", 0),
    ({"mask": lambda tokens: np.ones(64, int)}, "its mask gave int64 (64,) after 0 tokens, and not bool (64,)", 0),
    ({"mask": lambda tokens: None}, "its mask gave object () after 0 tokens, and not bool (64,)", 0),
    ({"mask": lambda tokens: np.full(64, len(tokens) < 1)}, "its mask allows no token after 1 tokens", 1),
    ({"ends": Ends((), ("a",), lambda tokens: 1 // 0)}, "its stop strings could not be looked for (ZeroDivisionError: "
                                                         "integer division or modulo by zero)", 1)])
def test_what_fails_of_a_requests_own_ends_it_alone(params, change, message, count):
    engine = engine_of(params, 4, capacity=600)
    ids = engine.submit([request(PROMPTS[0], 6), request(PROMPTS[0], 6, key=1, **change), request(PROMPTS[1], 6)])
    outputs = []
    while engine.busy:
        outputs += engine.step()
    [error] = [each for each in outputs if each.finish_reason == "error"]
    assert (error.id, error.error) == (ids[1], message)
    assert sum(len(each.tokens) for each in outputs if each.id == ids[1]) == count
    assert [sum(len(each.tokens) for each in outputs if each.id == ids[at]) for at in (0, 2)] == [6, 6]


def test_weights_of_another_model_are_refused(params):
    engine, lora = engine_of(params, 4, capacity=600), random_variables(LORA)["lora"]
    other = random_variables(config=dataclasses.replace(CONFIG, qk_norm=False))["params"]
    for variables, message in [
            ({"params": params | {"embedding": params["embedding"][:-1]}}, "embedding has the shape (63, 32)"),
            ({"params": params | {"lm_head": params["embedding"].T}}, "lm_head has the shape (32, 64), and none"),
            ({"params": {"embedding": params["embedding"]}}, "has the shape none"), ({"params": other}, "none"),
            ({"params": params | {"embedding": params["embedding"].astype(int)}}, "embedding is int32"),
            ({"params": params, "lora": lora}, "an adapter (lora)"), ({}, "no params"), ({"params": {}}, "none")]:
        with pytest.raises(InputError, match="weights of another model: .*" + re.escape(message)):
            engine.load(variables, 7)
    [identity] = engine.submit([request(PROMPTS[0], 4)])
    assert {output.version for output in engine.step()} == {0}
    adapted = Engine(Transformer(CONFIG, LORA), 4, 600, 8)
    with pytest.raises(InputError, match="weights of another model: "):
        adapted.load({"params": params, "lora": jax.tree.map(lambda leaf: leaf[..., :-1], lora)})
    for dtype in (jnp.bfloat16, jnp.float16, np.float64):
        engine.load({"params": jax.tree.map(functools.partial(np.asarray, dtype=dtype), params)})
    assert run(engine, engine.submit([request(PROMPTS[0], 4)]))[0][2] == "length"


def test_weights_that_are_not_finite_leave_nothing_behind(params, alone):
    """In the pages that contexts were read into."""
    requests, answers = alone
    engine = engine_of(params, 4, capacity=200)
    engine.load({"params": jax.tree.map(lambda leaf: leaf * np.nan, params)})
    assert {(len(tokens), reason) for tokens, _, reason in run(engine, engine.submit(requests))} == {(0, "error")}
    engine.load({"params": params})
    same(run(engine, engine.submit(requests)), answers)


def test_a_step_that_fails_loses_nothing(params, alone, monkeypatch):
    """Neither what was drawn nor what waits, though the cache is gone."""
    requests, answers = alone
    engine, decode, calls = engine_of(params, 2, capacity=200), decoder.decode, []

    def failing(*given):
        calls.append(1)
        if len(calls) in (2, 3):
            jax.tree.map(lambda leaf: leaf.delete(), given[2])
            raise RuntimeError("out of memory")
        return decode(*given)

    monkeypatch.setattr(decoder, "decode", failing)
    ids, found, failures = engine.submit(requests), {}, 0
    while engine.busy:
        try:
            for output in engine.step():
                tokens, logps, _ = found.get(output.id, ([], [], None))
                found[output.id] = (tokens + output.tokens, logps + output.logps, output.finish_reason)
        except RuntimeError:
            failures += 1
    assert failures == 2
    same([found[identity] for identity in ids], answers)
