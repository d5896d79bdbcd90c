"""The engine against a forward pass: what it says its tokens' log-probabilities are, against the whole context read
once, in float32; and the draws against the distribution that they are drawn from.

More requests than slots, prompts that share their beginnings, that end within a page, and at its edge, other weights
in between: whatever the cache keeps of another context, or of other weights, shows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checks import small_model
from checks.attention import judged
from checks.machine import Machine
from checks.small_model import LOGIT, OF_A_LAYER, plain_logits, plain_logps
from checks.tolerance import tolerance
from checks.verdicts import Check, Finding
from models.transformer import Transformer
from rollouts.engine import Engine
from rollouts.generate import generate
from rollouts.sampling import make_controls, sample

PART = "sampling"
SLOTS, NEW = 8, 20
CHANCE = 1e-6
"""that right draws are taken for wrong ones"""


def checks(machine: Machine) -> list[Check]:
    engines = [Check(PART, f"engine against a forward pass, {name}, {dtype}",
                     functools.partial(check, dtype, tuple(changes.items())))
               for name, changes in (("head_dim 128", {}), ("window", {"head_dim": 64, "sliding_window": 40}))
               for dtype in ("bfloat16", "float32") if not (machine.quick and (changes == {}) == (dtype == "float32"))]
    return [*engines, Check(PART, "draws against their distribution", functools.partial(check_draws, 4096))]


def check(dtype: str, changes: tuple[tuple[str, Any], ...]) -> Finding:
    """Two sets of weights, one behind the other in one engine, the same prompts."""
    config = small_model.config(dtype, tie_embeddings=True, **dict(changes))
    with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
        engine, errors = Engine(Transformer(config), num_slots=SLOTS, page=32), {}
        for version, name in enumerate(("first weights", "second weights")):
            held = small_model.variables(config, seed=version)
            engine.load(jax.tree.map(jnp.asarray, held), version)
            completions = generate(engine, prompts(config.vocab_size), jax.random.key(version), max_new_tokens=NEW,
                                   controls=make_controls(temperature=0.7))
            errors[f"log-probabilities, {name}"] = difference(config, held, completions)
    roundings = 2 * OF_A_LAYER * config.num_layers  # twice: a product of two rounded arrays has the errors of both
    limit = LOGIT / 0.7 * tolerance(dtype, roundings, config.mlp_dim)
    return judged({name: (error, limit) for name, error in errors.items()})


def prompts(vocab_size: int) -> list[list[int]]:
    """Twelve, of 1 to 150 tokens, of which some begin alike; 31, 32 and 33 are about a page."""
    random = np.random.default_rng(0)
    begin = random.integers(0, vocab_size, 150).tolist()
    alike = [begin[:length] for length in (150, 33, 32, 31)] + [begin[:70] + random.integers(0, vocab_size, 9).tolist()]
    return alike + [random.integers(0, vocab_size, length).tolist() for length in (1, 2, 31, 32, 33, 64, 100)]


def difference(config: Any, held: Any, completions: Any) -> float:
    """The root mean square, over a completion's tokens, of how far their log-probabilities are from those of a forward
    pass over prompt and completion; of the worst completion."""
    rows = [[*prompt, *each.tokens] for prompt, each in zip(prompts(config.vocab_size), completions, strict=True)]
    batch = {name: np.zeros((len(rows), max(map(len, rows))), np.int32)
             for name in ("tokens", "positions", "segment_ids")}
    for number, row in enumerate(rows):
        batch["tokens"][number, : len(row)], batch["segment_ids"][number, : len(row)] = row, 1
        batch["positions"][number, : len(row)] = np.arange(len(row))
    logps = small_model.in_reference(
        lambda held, batch: plain_logps(plain_logits(config, None, held, batch) / 0.7, batch), held, batch)
    errors = [np.asarray(each.logps) - logps[number, len(row) - len(each.tokens) : len(row)]
              for number, (row, each) in enumerate(zip(rows, completions, strict=True))]
    complete = all(len(each.tokens) == NEW for each in completions)
    return max(float(np.sqrt(np.mean(each**2))) for each in errors) if complete else float("inf")


def check_draws(count: int) -> Finding:
    """Pearson's statistic of `count` draws by each of three controls: over tokens, sum (seen - expected)^2 / expected,
    against the value that chance exceeds once in 1 / CHANCE; none at all where a control leaves nothing."""
    from scipy.stats import chi2

    logits = np.random.default_rng(0).standard_normal(40).astype(np.float32) * 1.5
    keys, found = jax.random.split(jax.random.key(0), count), {}
    for name, controls in (("temperature 1", {}), ("temperature 0.5", {"temperature": 0.5}), ("top-k 5", {"top_k": 5})):
        drawn, logps = jax.device_get(jax.jit(sample)(jnp.broadcast_to(logits, (count, 40)), keys,
                                                      make_controls(**controls)))
        masses = np.exp(logits.astype(np.float64) / controls.get("temperature", 1.0))
        kept = masses >= np.sort(masses)[-controls.get("top_k", 40)]
        p = np.where(kept, masses, 0) / masses[kept].sum()
        seen = np.bincount(drawn, minlength=40)
        likely = p * count >= 5
        rest = [seen[~likely].sum(), (p * count)[~likely].sum()]
        seen_cells, cells = np.append(seen[likely], rest[0]), np.append((p * count)[likely], max(rest[1], 1e-9))
        found[name] = (float(np.sum((seen_cells - cells) ** 2 / cells)), float(chi2.isf(CHANCE, len(cells) - 1)))
        difference = np.abs(logps - np.log(np.maximum(p, 1e-30))[drawn]).max()
        found[f"log-probabilities at {name}"] = (float(difference), tolerance("float32", 8, 40) * 10)
    return judged(found)
