"""config.json of a Hugging Face folder, in the spelling of transformers 4 or 5, read as a ModelConfig and written.

Every key is read, or known to change no number, or refused by its name: what an unknown key asks for cannot be guessed,
and a model that computes almost the same is worse than none. A key whose value is null says nothing.
"""

from typing import Any

from errors import InputError, as_json
from models.config import FAMILIES, FULL, SLIDING, ModelConfig
from models.hf_rope import ROPE_KEYS, read_rope, write_scaling

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "max_position_embeddings", "head_dim", "sliding_window")
_FLAGS = ("tie_word_embeddings", "attention_bias", "use_sliding_window")
_READ = {"model_type", "architectures", "id2label", "rms_norm_eps", "hidden_act", "layer_types", "max_window_layers",
         *_SIZES, *_FLAGS, *ROPE_KEYS}

_HARMLESS = {
    # where it comes from and how transformers holds it
    "transformers_version", "torch_dtype", "dtype", "name_or_path", "_name_or_path", "_commit_hash",
    "tokenizer_class", "unsloth_version", "unsloth_fixed", "transformers.js_config", "attn_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "gradient_checkpointing",
    "model_max_length", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states", "tie_last_hidden_states", "chunk_size_feed_forward", "torchscript", "use_bfloat16",
    "tf_legacy_loss", "keys_to_ignore_at_inference", "finetuning_task", "task_specific_params",
    # how it was first trained, or is drawn from: dropout and initial weights are the run's own affair
    "initializer_range", "attention_dropout", "pretraining_tp", "label2id", "num_labels", "problem_type",
    "max_sequence_length", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "prefix", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "temperature", "top_k",
    "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty", "encoder_repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "epsilon_cutoff",
    "eta_cutoff", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind"}
"""keys that change no score, whatever their value"""

_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "mlp_bias": (False,), "is_llama_config": (True,), "rope_interleaved": (False,),
    "use_mrope": (False,), "is_decoder": (False,), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,), "cross_attention_hidden_size": (None,), "pruned_heads": ({},)}
"""keys that only these values, transformers' own defaults, leave without effect"""

_PLAIN_OF_FAMILY: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"sliding_window": (None,), "use_sliding_window": (False,)},
    "mistral": {"attention_bias": (False,), "use_sliding_window": (True,), "max_window_layers": (None,)},
    "qwen2": {}, "qwen3": {}}

_QWEN = {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "max_position_embeddings": 32768, "vocab_size": 151936, "sliding_window": 4096,
         "max_window_layers": 28}
_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": None, "max_position_embeddings": 2048, "vocab_size": 32000, "sliding_window": None,
          "max_window_layers": 0}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                         "sliding_window": 4096},
    "qwen2": _QWEN, "qwen3": _QWEN | {"head_dim": 128}}
"""what transformers takes where config.json leaves a key out"""

_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False,
           "head_dim": None, "layer_types": None}

_MAY_BE_NULL = ("num_key_value_heads", "head_dim", "sliding_window")
"""keys whose null is a value of its own; any other's says nothing"""

CLASSIFIER = "ForSequenceClassification"
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                  "qwen3": "Qwen3ForCausalLM"}


def from_hf(config: dict[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a config.json. Raises InputError, naming `where` and the key, for what the transformer does
    not compute."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{where}: unknown architecture {as_json(family)}; Temper computes {', '.join(FAMILIES)}")
    _check_keys(config, family, where)
    values = _COMMON | _DEFAULTS[family] | {key: value for key, value in config.items()
                                            if value is not None or key in _MAY_BE_NULL}
    _check_values(values, where)
    heads, embed = values["num_attention_heads"], values["hidden_size"]
    kv_heads, head_dim = values["num_key_value_heads"] or heads, values["head_dim"] or embed // heads
    if heads % kv_heads or head_dim % 2:
        raise InputError(f"{where}: num_attention_heads={heads} must divide over num_key_value_heads={kv_heads}, and "
                         f"head_dim={head_dim} by two")
    window, layer_types = _windows(values, family, where)
    theta, scaling, max_length = read_rope(values, where)
    has_bias = family in ("llama", "qwen3") and values["attention_bias"]
    return ModelConfig(
        vocab_size=values["vocab_size"], embed_dim=embed, mlp_dim=values["intermediate_size"],
        num_layers=values["num_hidden_layers"], num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim,
        max_length=max_length, rope_theta=theta, rope_scaling=scaling,
        norm_eps=values["rms_norm_eps"], tie_embeddings=values["tie_word_embeddings"],
        qkv_bias=family == "qwen2" or has_bias, o_bias=has_bias, qk_norm=family == "qwen3", sliding_window=window,
        layer_types=layer_types, reward_head=_has_reward_head(config, where), family=family)


def _check_keys(config: dict[str, Any], family: str, where: str) -> None:
    """Raises InputError for the first key that is not known, or not with this value."""
    plain = _PLAIN | _PLAIN_OF_FAMILY[family]
    if family == "llama" and config.get("use_sliding_window") is False:
        del plain["sliding_window"]  # the size of a window that is not used
    for key, value in config.items():
        if value is None:
            continue
        if key in ("quantization_config", "quantization"):
            raise InputError(f"{where}: {key} says that the weights are quantised{_method(value)}, which is not read; "
                             f"load them with transformers, dequantise, save, and give that folder, or a .gguf file")
        if key == "auto_map":
            raise InputError(f"{where}: auto_map says that the model brings code of its own, which is never run; "
                             f"where transformers' {family} computes the same, take the key out")
        if key in plain and value not in plain[key]:
            raise InputError(f"{where}: {key}={as_json(value)} is not supported for {family} (only "
                             f"{' or '.join(map(as_json, plain[key]))})")
        if key not in _READ | _HARMLESS | plain.keys():
            raise InputError(f"{where}: key {key!r} ({as_json(value)}) is not known for {family}; where it changes "
                             f"nothing that the model computes, take it out")


def _method(value: Any) -> str:
    method = value.get("quant_method") if isinstance(value, dict) else None
    return f" ({method})" if method else ""


def _check_values(values: dict[str, Any], where: str) -> None:
    """Raises InputError for a value of the wrong type."""
    for key in _SIZES:
        if not (_is_size(values[key]) or key in _MAY_BE_NULL and values[key] is None):
            raise InputError(f"{where}: {key}={as_json(values[key])} is no positive whole number")
    for key in _FLAGS:
        if not isinstance(values[key], bool):
            raise InputError(f"{where}: {key}={as_json(values[key])} is neither true nor false")
    if not (_is_size(values["max_window_layers"]) or values["max_window_layers"] == 0):
        raise InputError(f"{where}: max_window_layers={as_json(values['max_window_layers'])} is no whole number")
    if isinstance(values["rms_norm_eps"], bool) or not isinstance(values["rms_norm_eps"], int | float):
        raise InputError(f"{where}: rms_norm_eps={as_json(values['rms_norm_eps'])} is no number")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _windows(values: dict[str, Any], family: str, where: str) -> tuple[int | None, tuple[str, ...] | None]:
    """The window, and which layers have it where not all do, as transformers' configuration of the family has them."""
    window = values["sliding_window"] if family == "mistral" or values["use_sliding_window"] else None
    count = values["num_hidden_layers"]
    types = values["layer_types"]
    if types is None:
        first = values["max_window_layers"]
        types = [SLIDING if window is not None and layer >= first else FULL for layer in range(count)]
    _check_layer_types(types, count, where)
    if SLIDING not in types:
        return None, None
    if window is None:
        raise InputError(f"{where}: layer_types has {SLIDING}, but no window is in force (sliding_window="
                         f"{as_json(values['sliding_window'])}, use_sliding_window="
                         f"{as_json(values['use_sliding_window'])}); give one")
    return window, tuple(types) if FULL in types else None


def _check_layer_types(types: Any, count: int, where: str) -> None:
    if not isinstance(types, list) or len(types) != count:
        raise InputError(f"{where}: layer_types must name one kind for each of the {count} layers; it is "
                         f"{as_json(types)}")
    unknown = [kind for kind in types if kind not in (SLIDING, FULL)]
    if unknown:
        raise InputError(f"{where}: layer_types has {as_json(unknown[0])}; only {FULL} and {SLIDING} are computed")


def _has_reward_head(config: dict[str, Any], where: str) -> bool:
    """True for a classifier of one label, which transformers' reward models are."""
    names, labelled = config.get("architectures") or [], config.get("id2label") or {"0": "", "1": ""}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: architectures={as_json(names)} is no list of names")
    if not isinstance(labelled, dict):
        raise InputError(f"{where}: id2label={as_json(labelled)} is no object of labels")
    if not any(name.endswith(CLASSIFIER) for name in names):
        return False
    labels = len(labelled)  # transformers' default is two
    if labels != 1:
        raise InputError(f"{where}: a classifier of {labels} labels; a reward model has one")
    return True


def to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json that transformers (4 and 5) reads back as the same architecture."""
    written = {
        "architectures": [_ARCHITECTURES[config.family]], "model_type": config.family, "torch_dtype": dtype,
        "vocab_size": config.vocab_size, "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length, "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tie_embeddings, "hidden_act": "silu",
        "attention_bias": config.o_bias, "sliding_window": config.sliding_window,
    }
    if config.family in ("qwen2", "qwen3"):
        written |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": _first_window(config)}
    if config.family == "qwen2":
        del written["attention_bias"]  # its q, k and v always have one
    if config.layer_types is not None:
        written |= {"layer_types": list(config.layer_types)}
    if config.reward_head:
        written |= {"architectures": [_ARCHITECTURES[config.family].replace("ForCausalLM", CLASSIFIER)],
                    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return written | {"rope_scaling": write_scaling(config.rope_scaling)}


def _first_window(config: ModelConfig) -> int:
    """The first layer with a window, for readers that do not know layer_types."""
    return 0 if config.layer_types is None else config.layer_types.index(SLIDING)
