"""The run directory: config.yaml, model/, metrics.jsonl, checkpoints/ - started, continued and opened as a model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import flax.linen as nn
import jax
import yaml

from errors import InputError, shown
from files import write_text, writing
from models.config import PRESETS, ModelConfig
from models.heads import with_reward_head
from models.hf_config import from_hf, to_hf
from models.lora import LoRAConfig, concatenate
from models.pretrained import Pretrained, fetch_config, is_on_hub, load_merged, open_pretrained
from models.safetensors_weights import read_json
from models.transformer import Transformer, init_variables
from models.weights import abstract_params, on_host, params_shardings
from sharding import hosts
from sharding.layout import Layout
from training.checkpoints import finished_steps, restore_trainable
from training.holding import LOCK
from training.launches import record_launch


class SavableTokenizer(Protocol):
    """A tokenizer, of which a run directory keeps a copy."""

    def save(self, folder: Path) -> None:
        """Writes what it can be loaded from."""


HISTORY = "history"
"""in config.yaml: what a run that went on did with other flags from which step on"""


def is_run(path: Path) -> bool:
    return (path / "config.yaml").exists()


def check_free(run: Path, config: dict[str, Any], may_differ: frozenset[str],
               renamed: Mapping[str, str] = MappingProxyType({}),
               defaults: Mapping[str, Any] = MappingProxyType({})) -> dict[str, tuple[Any, Any]]:
    """Raises InputError unless `run` is free, or this very experiment's already (then it is resumed).

    `may_differ` are flags, or groups of them; `renamed` gives the new names of flags that an older run wrote down, and
    `defaults` what it had of flags that did not exist yet. Returns what does differ: name -> (there, now).
    """
    if not is_run(run):
        # a run killed while it was being made leaves these
        leftovers = {"model", "config.yaml.partial", LOCK}
        if run.exists() and (not run.is_dir() or any(path.name not in leftovers for path in run.iterdir())):
            raise InputError(f"output directory {run} exists and is no run of Temper; choose another --output-dir")
        return {}
    stored = yaml.safe_load(_dump(dict(defaults))) | {_python_name(renamed.get(name.replace("_", "-"), name)): value
             for name, value in flatten(read_config(run)).items() if name != HISTORY}
    current = flatten(yaml.safe_load(_dump(config)))
    names = [*current, *(name for name in stored if name not in defaults)]
    differing = {name: (stored.get(name), current.get(name)) for name in names if stored.get(name) != current.get(name)}
    others = [_difference(name, *values) for name, values in differing.items()
              if not {name, name.partition(".")[0]} & may_differ]
    if others:
        raise InputError(f"output directory {run} holds another experiment ({'; '.join(others)}); choose another "
                         f"--output-dir, resume it with its own flags, or move it aside with --restart")
    return differing


def _difference(name: str, there: Any, now: Any) -> str:
    if name == "sha256":
        return "sha256: the rows of the data are others"
    return f"{name}: {shown(there)} there, {shown(now)} now"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lora.rank": 16} of {"lora": {"rank": 16}}."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _python_name(flag: str) -> str:
    return flag.replace("-", "_")


def start(run: Path, config: dict[str, Any], model: ModelConfig, tokenizer: SavableTokenizer | None,
          about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Makes `run` the experiment's, unless it is already: model/ (architecture and tokenizer), then config.yaml, in
    which a run that goes on with other flags has these, and what they were before under `history`; and, each time, a
    line of launches.jsonl, with what is said `about` the run.

    One process writes; the others wait for it.
    """
    if hosts.is_main():
        with writing(run):
            if not is_run(run):
                _write(run, config, model, tokenizer)
            else:
                _write_changes(run, json.loads(json.dumps(config)))
            record_launch(run, about)
    hosts.barrier("run directory")


def _write(run: Path, config: dict[str, Any], model: ModelConfig, tokenizer: SavableTokenizer | None) -> None:
    folder = run / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf(model, "float32"), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)
    write_text(run / "config.yaml", _dump(config))


def _write_changes(run: Path, config: dict[str, Any]) -> None:
    stored = read_config(run)
    before, now = flatten(stored), flatten(config)
    changed = {name: {"before": before[name], "now": value} for name, value in now.items()
               if name in before and before[name] != value}
    if changed:
        steps = finished_steps(run / "checkpoints")
        history = [*stored.get(HISTORY, []), {"from_step": steps[-1] if steps else 0, "changed": changed}]
        write_text(run / "config.yaml", _dump(config | {HISTORY: history}))


def _dump(config: dict[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)  # tuples become lists


def read_config(run: Path) -> dict[str, Any]:
    """config.yaml of a run directory."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{run / 'config.yaml'}: not readable ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{run / 'config.yaml'}: a mapping of flags was expected; is {run} a run directory?")
    return config


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run opened as a model; `load` gives one of its checkpoints: the newest, the best, or that of a step."""

    path: Path
    config: ModelConfig
    tokenizer: Path
    lora: LoRAConfig | None
    checkpoint: str = "newest"
    item: str = "trainable"
    """of a checkpoint: `critic` is the critic of a run that has one"""

    def base(self) -> "Pretrained | TrainedRun":
        """The model that the run started from."""
        config = read_config(self.path)
        if self.item == "critic" and config["critic"]["model"] is not None:
            return open_critic(config["critic"]["model"])
        return open_model(config["model"])

    def load(self, layout: Layout, **compute: Any) -> tuple[Transformer, dict[str, Any]]:
        """(model, variables) on `layout`'s mesh: `params`, and `lora` where it was trained; `compute` overrides
        dtype, ..."""
        if self.lora is None:
            config = dataclasses.replace(self.config, **compute)
            shapes = with_shardings(abstract_params(config), params_shardings(config, layout))
            params = restore_trainable(self.path, shapes, self.checkpoint, self.item)
            return Transformer(config, layout=layout), {"params": params}
        config, params = load_merged(self.base(), layout, **compute)
        if self.config.reward_head:
            config, params = with_reward_head(config, params, layout)
        return Transformer(config, self.lora, layout=layout), {"params": params, "lora": self.load_lora(layout)}

    def load_lora(self, layout: Layout) -> dict[str, Any]:
        """The trained `lora` collection alone."""
        model = Transformer(self.config, self.lora)
        boxed = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["lora"]
        shapes = with_shardings(boxed, layout.tree_shardings(boxed))
        return restore_trainable(self.path, shapes, self.checkpoint, self.item)


def whole_adapter(opened: "Pretrained | TrainedRun", layout: Layout,
                  ) -> tuple[LoRAConfig, dict[str, Any], "Pretrained | TrainedRun"]:
    """(configuration, `lora` on the host, base): what LoRA learnt, in this run and in those below it, as one adapter on
    a base that has none. Raises InputError where nothing was learnt by LoRA."""
    adapters = []
    while isinstance(opened, TrainedRun) and opened.lora is not None:
        adapters.insert(0, (opened.lora, jax.tree.map(on_host, opened.load_lora(layout))))
        opened = opened.base()
    if isinstance(opened, Pretrained) and opened.adapter is not None:
        adapters.insert(0, opened.adapter)
        opened = dataclasses.replace(opened, adapter=None)
    if not adapters:
        raise InputError("--format adapter needs a run trained with LoRA (--lora.rank); use --format merged")
    return *concatenate(adapters), opened


def with_shardings(boxed: Any, shardings: Any) -> Any:
    """Shapes as Orbax takes them."""
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        nn.meta.unbox(boxed), shardings)


def open_model(reference: str) -> Pretrained | TrainedRun:
    """What --model names: a run directory, its checkpoint RUN@STEP or RUN@best, or what models.pretrained opens."""
    path, checkpoint = split_checkpoint(reference)
    run = Path(path).expanduser()
    if not is_run(run):
        return open_pretrained(reference)
    config = from_hf(read_json(run / "model" / "config.json"), str(run / "model" / "config.json"))
    return TrainedRun(run, config, run / "model", _read_lora(read_config(run)), checkpoint)


def open_config(reference: str) -> ModelConfig:
    """The configuration of what --model names; of a preset, or a model on the Hub, without its weights."""
    if reference in PRESETS:
        return PRESETS[reference]
    if is_on_hub(reference):
        return fetch_config(reference)
    return open_model(reference).config


def open_critic(reference: str) -> Pretrained | TrainedRun:
    """What a critic begins as: the critic of a run that has one, else what open_model opens."""
    opened = open_model(reference)
    critic = read_config(opened.path).get("critic") if isinstance(opened, TrainedRun) else None
    if not critic:
        return opened
    opened = dataclasses.replace(opened, lora=_read_lora(critic), item="critic")
    config = opened.config if critic["model"] is None else opened.base().config  # the run has its policy's at hand
    return dataclasses.replace(opened, config=dataclasses.replace(config, reward_head=True))


def _read_lora(flags: Mapping[str, Any]) -> LoRAConfig | None:
    """Of a run's flags, or its critic's."""
    lora = flags.get("lora") or {"rank": 0}
    config = LoRAConfig(**{name: tuple(value) if name == "targets" else value for name, value in lora.items()})
    return config if config.rank else None


def open_policy(reference: str) -> Pretrained | TrainedRun:
    """open_model, for what generates text. Raises InputError for a reward model."""
    opened = open_model(reference)
    if opened.config.reward_head:
        raise InputError(f"model {reference!r} is a reward model, which writes nothing; give a language model")
    return opened


def every_checkpoint(reference: str) -> dict[str, str]:
    """{"step-000100": "RUN@100", ...} of "RUN@all", in order; {"": reference} of anything else. Raises InputError for a
    run that has saved none."""
    path, _, checkpoint = reference.rpartition("@")
    run = Path(path).expanduser()
    if checkpoint != "all" or not is_run(run):
        return {"": reference}
    steps = finished_steps(run / "checkpoints")
    if not steps:
        raise InputError(f"model {reference!r}: the run has saved no checkpoint; wait for its first (--save-every)")
    return {f"step-{step:06d}": f"{path}@{step}" for step in steps}


def split_checkpoint(reference: str) -> tuple[str, str]:
    """("RUN", "best") of "RUN@best", ("RUN", "100") of "RUN@100"; anything else is (itself, "newest")."""
    path, at, checkpoint = reference.rpartition("@")
    named = at and (checkpoint == "best" or checkpoint.isdecimal()) and is_run(Path(path).expanduser())
    return (path, checkpoint) if named else (reference, "newest")


def absolute_reference(reference: str) -> str:
    """A local path made absolute, so that a run can be opened from anywhere; names stay as they are."""
    name, checkpoint = split_checkpoint(reference)
    path = Path(name).expanduser()
    absolute = str(path.resolve()) if path.exists() else name
    return absolute if checkpoint == "newest" else f"{absolute}@{checkpoint}"

