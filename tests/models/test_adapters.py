"""PEFT adapters: what is refused by name; several as one."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, jitted_score, padded, random_variables, rows

from errors import InputError
from models.lora import LoRAConfig, concatenate, merge
from models.peft import read_adapter, read_settings, write_adapter
from models.pretrained import open_pretrained
from models.transformer import Transformer
from tests.fixtures.variants import cases

PLAIN = "adapter, two linear layers"


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter with its base, some keys of its configuration changed."""
    def write(name=PLAIN, **changes):
        folder = cases.write(tmp_path / "model", name)
        settings = json.loads((folder / "adapter_config.json").read_text()) | changes
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    return write


def refused(folder):
    with pytest.raises(InputError) as error:
        open_pretrained(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "eva", "another"])
def test_initialisations_that_change_the_base_are_named(start, adapter):
    assert f"adapter_config.json: init_lora_weights={json.dumps(start)} is not supported" in refused(
        adapter(init_lora_weights=start))


@pytest.mark.parametrize(("key", "value"), [
    ("use_dora", True), ("bias", "all"), ("bias", "lora_only"), ("lora_bias", True), ("peft_type", "IA3"),
    ("modules_to_save", ["lm_head"]), ("fan_in_fan_out", True), ("trainable_token_indices", [1]),
    ("target_parameters", ["experts"]), ("layer_replication", [[0, 2], [1, 4]]), ("alora_invocation_tokens", [3]),
    ("use_qalora", True), ("arrow_config", {"top_k": 2}), ("kasa_config", {}), ("use_bdlora", {"nblocks": 2}),
    ("revision", "v2"), ("megatron_config", {"a": 1}), ("a_key_of_next_year", 0.5)])
def test_keys_that_change_what_is_computed_are_named(key, value, adapter):
    message = refused(adapter(**{key: value})).replace("peft_type ", "peft_type=")
    assert f"{key}={json.dumps(value)} is not supported" in message


@pytest.mark.parametrize(("targets", "message"), [
    (["q_proj", "lm_head"], "target module 'lm_head' is not supported"),
    (["q_proj", "embed_tokens"], "target module 'model.embed_tokens' is not supported"),
    (["c_attn"], 'target_modules ["c_attn"] is no layer of this model'),
    (["q_proj", "down_proj", "k_proj"], "layers.0.self_attn.k_proj.lora_A.weight is missing"),
    (["q_proj"], "layers.0.mlp.down_proj.lora_A.weight (one of 8) has no place"),
    (None, "target_modules is missing")], ids=str)
def test_target_modules_that_are_not_the_files(targets, message, adapter):
    assert message in refused(adapter(target_modules=targets))


def test_a_rank_that_is_not_the_files(adapter):
    assert "q_proj.lora_A.weight has rank 4, adapter_config.json says 8" in refused(adapter(r=8))


def test_nan_in_an_adapter(adapter):
    folder = adapter()
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "holds NaN or infinite values" in refused(folder)


def test_half_precision_is_read(adapter):
    import ml_dtypes

    folder = adapter()
    whole = open_pretrained(str(folder)).adapter[1]
    for dtype in (np.float16, ml_dtypes.bfloat16):
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({key: value.astype(dtype) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
        half = open_pretrained(str(folder)).adapter[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), half, whole)


def test_keys_without_a_say_are_taken(adapter):
    config, lora = open_pretrained(str(adapter())).adapter
    harmless = {"inference_mode": False, "task_type": None, "init_lora_weights": None, "eva_config": {"rho": 2.0},
                "loftq_config": {"loftq_bits": 4}, "auto_mapping": {"unsloth_fixed": True}, "next_years": None}
    again, same = open_pretrained(str(adapter(**harmless))).adapter
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, lora)


def test_several_adapters_as_one_add_what_each_adds(tmp_path):
    one, two = LoRAConfig(4, 8.0, targets=("q", "down")), LoRAConfig(3, 4.0, targets=("q", "up"))
    params = random_variables()["params"]
    loras = [random_variables(config, seed)["lora"] for seed, config in enumerate((one, two))]
    config, lora = concatenate([(one, loras[0]), (two, loras[1])])
    assert (config.rank, config.scale, config.targets) == (7, 1.0, ("q", "up", "down"))
    both = merge(merge(params, loras[0], one.scale), loras[1], two.scale)
    batch = padded(rows([12, 9]))
    np.testing.assert_allclose(jitted_score(Transformer(CONFIG, config), {"params": params, "lora": lora}, batch).logps,
                               jitted_score(Transformer(CONFIG), {"params": both}, batch).logps, atol=1e-4)
    write_adapter(tmp_path, lora, config, "base")
    again, same = read_adapter(tmp_path, read_settings(tmp_path), CONFIG)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, lora)
