"""Weights in and out: round trips, and every damage named."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, LORA, one_device, random_variables

from errors import InputError
from models.config import PRESETS
from models.gguf_weights import GGUFWeights
from models.hf_config import from_hf, to_hf
from models.lora import LoRAConfig
from models.peft import read_adapter, read_settings, write_adapter
from models.pretrained import load_merged, open_pretrained
from models.safetensors_weights import write_hf_folder

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"


@pytest.fixture
def llama(tmp_path):
    """A copy of a tiny model that a test may damage."""
    shutil.copytree(FAMILIES / "llama2", tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder):
    return load_merged(open_pretrained(str(folder)), one_device())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_the_hugging_face_spelling(preset):
    config = PRESETS[preset]
    assert from_hf(json.loads(json.dumps(to_hf(config, "float32"))), preset) == config


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("shard_bytes", [2**40, 20_000])
def test_export_reads_back_bit_for_bit(family, shard_bytes, tmp_path):
    config, params = load(FAMILIES / family)
    write_hf_folder(tmp_path, params, config, "float32", shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    if shard_bytes == 20_000:
        assert [file.name for file in files] == [f"model-{number:05d}-of-{len(files):05d}.safetensors"
                                                 for number in range(1, len(files) + 1)]
        assert max(file.stat().st_size for file in files) < 24_000  # the header comes on top
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    else:
        assert [file.name for file in tmp_path.iterdir() if "model" in file.name] == ["model.safetensors"]
    again_config, again = load(tmp_path)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_an_adapter_reads_back_bit_for_bit(tmp_path):
    lora = random_variables(LORA)["lora"]
    write_adapter(tmp_path, lora, LORA, "base")
    settings = read_settings(tmp_path)
    config, again = read_adapter(tmp_path, settings, CONFIG)
    assert (config, settings["base_model_name_or_path"]) == (LORA, "base")
    jax.tree.map(np.testing.assert_array_equal, lora, again)


def test_rslora_becomes_a_plain_scale(tmp_path):
    write_adapter(tmp_path, random_variables(LORA)["lora"], LORA, "base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {"use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    config, _ = read_adapter(tmp_path, read_settings(tmp_path), CONFIG)
    assert config.scale == pytest.approx(LORA.alpha / LORA.rank**0.5)


def test_an_adapter_on_the_wrong_base_is_refused(tmp_path, llama):
    wide = dataclasses.replace(CONFIG, embed_dim=64)
    write_adapter(tmp_path / "adapter", random_variables(LORA, config=wide)["lora"], LORA, str(llama))
    with pytest.raises(InputError, match="do not belong together"):
        load(tmp_path / "adapter")


def test_missing_weight(llama):
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight \(64, 32\) is missing"):
        load(llama)


def test_weight_of_the_wrong_shape(llama):
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(llama, lambda tensors: tensors.update({name: tensors[name][:-1].copy()}))
    with pytest.raises(InputError, match=r"k_proj\.weight has shape \(15, 32\), the configuration needs \(16, 32\)"):
        load(llama)


def test_weight_without_a_place(llama):
    rewrite(llama, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, "f")}))
    with pytest.raises(InputError, match=r"q_proj\.bias .* no place"):
        load(llama)


def test_nan_in_the_weights(llama):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = np.nan

    rewrite(llama, spoil)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds NaN"):
        load(llama)


def test_truncated_file(llama):
    data = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(llama)


def test_pickles_are_never_loaded(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickles, which are never loaded"):
        load(llama)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("model_type", "mamba", 'unknown architecture "mamba"'), ("hidden_act", "gelu", 'hidden_act="gelu"'),
    ("rope_parameters", {"rope_type": "ntk", "factor": 4.0}, "rope scaling 'ntk'"),
    ("attention_bias", 1, "attention_bias=1 is neither")])
def test_unknown_architectures_are_named(llama, key, value, message):
    config = json.loads((llama / "config.json").read_text()) | {key: value}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        open_pretrained(str(llama))


def test_what_names_no_model(tmp_path):
    with pytest.raises(InputError, match="no such file or folder, and no known name; known are smollm2-135m-instruct"):
        open_pretrained("no-such-model")
    with pytest.raises(InputError, match="is it a model"):
        open_pretrained(str(tmp_path))


def test_a_hub_id_is_fetched_without_pickles(monkeypatch, llama):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, allow_patterns):
        asked.update(repo=repo_id, patterns=allow_patterns)
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    opened = open_pretrained("owner/some-model")
    assert (opened.config.family, opened.name) == ("llama", "owner/some-model")
    assert asked["repo"] == "owner/some-model"
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["patterns"])
    assert open_pretrained("qwen3-0.6b").name == "Qwen/Qwen3-0.6B-Base" == asked["repo"]
    assert open_pretrained(str(llama)).name == str(llama.resolve())


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    import huggingface_hub

    def snapshot_download(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"could not be fetched from the Hub \(no route\)") as caught:
        open_pretrained("owner/some-model")
    assert "\n" not in str(caught.value)


def test_damaged_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(InputError, match="not a readable GGUF file"):
        GGUFWeights(tmp_path / "model.gguf")


def test_lora_config_of_an_adapter_keeps_its_targets(tmp_path):
    few = LoRAConfig(rank=2, alpha=4.0, targets=("q", "down"))
    write_adapter(tmp_path, random_variables(few)["lora"], few, "base")
    assert read_adapter(tmp_path, read_settings(tmp_path), CONFIG)[0] == few


def test_llama3_scaling_is_recognised_in_gguf_factors():
    from models.gguf_weights import _with_scaling
    from models.rope import inverse_frequencies

    scaled = PRESETS["llama3.2-1b"]
    plain = dataclasses.replace(scaled, rope_scaling=None)
    factors = inverse_frequencies(plain) / inverse_frequencies(scaled)
    assert _with_scaling(plain, factors, "file") == scaled
    with pytest.raises(InputError, match=r"file: its rope_freqs\.weight is not Llama 3's scaling"):
        _with_scaling(plain, factors * np.linspace(1, 2, len(factors)), "file")


GGUF = FAMILIES.parent / "gguf" / "F32.gguf"


@pytest.fixture
def gguf_parts(tmp_path):
    """A GGUF file in three parts, as llama.cpp splits it: the metadata is in the first."""
    import gguf

    reader = gguf.GGUFReader(GGUF)
    files = [tmp_path / f"model-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, file in enumerate(files):
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for key, field in reader.fields.items() if number == 0 else ():
            if key.startswith("llama."):
                writer.add_key_value(key, field.contents(), field.types[0])
        for tensor in reader.tensors[number::3]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def test_the_parts_of_a_split_gguf_are_read(gguf_parts):
    whole = load_merged(open_pretrained(str(GGUF)), one_device())
    for part in gguf_parts:
        opened = open_pretrained(str(part))
        assert opened.tokenizer == gguf_parts[0]
        config, params = load_merged(opened, one_device())
        assert config == whole[0]
        jax.tree.map(np.testing.assert_array_equal, params, whole[1])


def test_parts_of_a_gguf_that_are_missing_or_renamed(gguf_parts):
    gguf_parts[2].rename(gguf_parts[2].with_name("third.gguf"))
    with pytest.raises(InputError, match=r"model-00003-of-00003\.gguf is missing, one of 3 parts"):
        open_pretrained(str(gguf_parts[0]))
    gguf_parts[0].rename(gguf_parts[0].with_name("first.gguf"))
    with pytest.raises(InputError, match=r"first\.gguf: is one of 3 parts"):
        open_pretrained(str(gguf_parts[0].with_name("first.gguf")))


def test_metadata_that_is_not_read_is_named(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_float32("llama.logit_scale", 0.5)
    for tensor in gguf.GGUFReader(GGUF).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(InputError, match=r"metadata llama\.logit_scale \(0\.5\) is not known"):
        open_pretrained(str(tmp_path / "model.gguf"))
