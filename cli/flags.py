"""The flags that training scripts share, in the order of --help."""

import dataclasses
from typing import Any, Literal

from cli.checks import check_not_negative, check_positive, check_seed, check_temperature
from cli.evaluation import EvaluateFlags, check_evaluation
from data.sources import DataSource
from errors import InputError
from models.settings import LoRAConfig, Remat
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig, SamplingMesh
from training.settings import OptimizerConfig


def seed_field() -> Any:
    """0; random generators take seeds of 32 bits."""
    return dataclasses.field(default=0, metadata={"largest": 2**32 - 1})


def temperature_field() -> Any:
    """1; one that float32 does not hold counts as 0."""
    return dataclasses.field(default=1.0, metadata={"counts_as_0": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Of any training run."""

    data: tuple[DataSource, ...]
    """Rows come from these sources: FILE.jsonl, FILE.jsonl.gz, FILE.parquet (or globs of them),
    tfds:NAME[/CONFIG][:SPLIT], hf:OWNER/NAME[/CONFIG][:SPLIT], gym:TASK[(key=value, ...)]. Several are mixed by weight,
    written SOURCE@WEIGHT. Columns of other names are renamed, ours before theirs: "FILE.jsonl[prompt=question]"."""
    output_dir: str
    """The run directory is made here: config.yaml, metrics.jsonl, checkpoints/."""
    restart: bool = False
    """A run that is there is moved to OUTPUT_DIR.1, or .2, ..., and begun anew; give it once."""
    batch_size: int = 8
    """A step takes this many rows, pairs of them, or prompts, over all devices and micro-batches."""
    learning_rate: float = 1e-4
    """The learning rate rises to this peak and falls as --optimizer.schedule says."""
    seed: int = seed_field()
    """The seed decides what is initialised, the order of rows, dropout, and what is sampled."""
    eval_data: tuple[DataSource, ...] = ()
    """The rows of these sources are not trained on; the model is evaluated on them before the first step and after the
    last."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"; a row's column chat_template_kwargs
    comes before them."""
    eval_every: int = 0
    """The run is evaluated every so many steps, too; 0 evaluates at its beginning and end alone."""
    save_every: int = 100
    """A checkpoint is saved every so many steps, and after the last one in any case; 0 saves that one alone."""
    trackers: tuple[Literal["tensorboard", "wandb", "none"], ...] = ()
    """Metrics and samples go to these, besides files; by default to tensorboard where that is installed."""
    profile: str | None = None
    """FIRST:LAST writes a JAX profiler trace of these steps to profile/ in the run directory."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type, and the frozen weights under LoRA kept in it; auto is what is fastest here, on
    CPUs as measured at the first start. float32 is not rounded to TF32 or bfloat16 by accelerators."""
    remat: Remat = "none"
    """To save memory, the backward pass recomputes nothing, all but matmuls and attention's kernel (dots), all but the
    kernel (attention), or whole layers (full); with offload, all but the kernel, and what layers keep is in the host's
    memory."""
    attention: Literal["auto", "xla", "cudnn", "flash"] = "auto"
    """Attention is computed by this kernel; auto picks one by platform."""
    evaluate: EvaluateFlags = EvaluateFlags()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()

    def unread(self) -> dict[str, str]:
        """Settings that nothing reads beside the others -> where (cli.values)."""
        without_adamw = self.optimizer.name == "muon" and hasattr(self, "lora") and self.lora.rank
        return without_eval_data(self, "eval_every") | (dict.fromkeys(
            ("optimizer.b1", "optimizer.b2"), "where muon trains LoRA's matrices alone") if without_adamw else {})


def without_eval_data(flags: "RunFlags", *names: str) -> dict[str, str]:
    """What nothing reads where there are no eval rows."""
    return {} if flags.eval_data else dict.fromkeys(names, "without --eval-data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFlags(RunFlags):
    """Of a run that trains on rows as they are."""

    max_steps: int | None = None
    """The run takes this many optimiser steps; give this or --num-epochs."""
    num_epochs: float | None = None
    """The run takes as many steps as go through all rows of its one source this many times (a glob is one); give this
    or --max-steps."""
    num_microbatches: int | None = None
    """A step's rows are split into this many parts to save memory; the loss and gradient stay the same. By default 1,
    or on CPUs as many as keep weights, optimiser state and activations within half of the machine's memory."""
    max_length: int | None = None
    """A row may have this many tokens, and a packed row has as many; by default the model's context."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """Rows over --max-length end the run, are cut, or are left out, which metrics count (concat-then-split cuts every
    row where it must)."""
    bad_rows: Literal["error", "skip"] = "error"
    """Rows that cannot be read or trained on, pairs of equal answers among them, end the run, or are left out, which
    metrics count."""
    workers: int = 0
    """This many processes read and tokenise ahead on every host; with 0 the training process does so itself."""
    keep_best: bool = False
    """The checkpoint with the least eval loss is kept, too, besides the newest two (--model RUN@best)."""

    def unread(self) -> dict[str, str]:
        cut_anyway = getattr(self, "packing", None) == "concat-then-split"
        return super().unread() | without_eval_data(self, "keep_best") | (
            {"too_long": "with --packing concat-then-split, which cuts rows where it must"} if cut_anyway else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags(TrainingFlags):
    """Of a run that trains an existing model on rows as they are."""

    model: str
    """Training begins with this model: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT
    adapter or run directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    lora: LoRAConfig = LoRAConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweringFlags(ModelFlags):
    """Of a run whose model answers prompts."""

    sample_prompts: int = 0
    """The prompts of the first so many rows of --eval-data are answered, greedily, before the first step and after the
    last; scripts.report shows both answers."""

    def unread(self) -> dict[str, str]:
        return super().unread() | without_eval_data(self, "sample_prompts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceFlags:
    """Of a loss that holds the policy to a reference."""

    reference: str | None = None
    """The policy is held to this model, given as --model is, whose tokenizer must read what the policy writes; by
    default to the model itself, as it was."""
    beta: float = 0.1
    """The policy is held to the reference this strongly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How completions are drawn, besides --temperature and --max-new-tokens."""

    top_k: int = 0
    """Tokens are drawn from this many of the likeliest ones; 0 draws from all."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that together reach this probability."""
    min_p: float = 0.0
    """Tokens are drawn from those at least this share as probable as the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or completion have are divided by this where positive, multiplied where negative."""
    presence_penalty: float = 0.0
    """This is taken from the logits of tokens that the completion has."""
    frequency_penalty: float = 0.0
    """This is taken from a token's logit each time that the completion has it."""
    stop: tuple[str, ...] = ()
    """These strings end a completion, besides the model's end tokens."""

    def controls(self, temperature: float) -> Any:
        """What the sampler takes. Raises InputError for values that leave no distribution."""
        from rollouts.sampling import make_controls

        return make_controls(temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty,
                             self.presence_penalty, self.frequency_penalty)

    @property
    def note(self) -> str | None:
        """A line where the distribution drawn from is another than softmax(logits / temperature), which is trained."""
        plain = SamplingFlags()
        changed = [f"--sampling.{field.name.replace('_', '-')}" for field in dataclasses.fields(SamplingFlags)
                   if field.name != "stop" and getattr(self, field.name) != getattr(plain, field.name)]
        return changed and (f"note: {' and '.join(changed)} change the distribution that is drawn from, and not the "
                            f"policy that is trained; --importance-sampling-correction token_truncate weighs for it"
                            ) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingMeshFlags:
    """How the devices are laid out while sampling."""

    mesh: SamplingMesh = SamplingMesh()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineSamplingFlags(SamplingMeshFlags, SamplingFlags):
    """How completions are drawn, besides --temperature and --max-new-tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutFlags:
    """How rollouts are made and what is shown of them."""

    num_slots: int = 64
    """This many completions are decoded at a time; one that ends makes room for the next."""
    num_eval_samples: int = 1
    """An eval prompt is answered this many times: 1 is greedy, more are drawn as in training and their rewards
    averaged."""
    log_completions_every: int = 10
    """Some completions are printed every so many steps; 0 prints none."""
    allow_failing_rewards: bool = False
    """The run goes on where a reward raises an exception on every row of the first step, instead of ending there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentFlags:
    """What answers the policy, for conversations of several turns."""

    make: str | None = None
    """Each conversation has an object that this makes, as package.module:name, with `reset(row) -> messages` and `async
    step(messages) -> (messages, done, reward)` (docs/online.md); without it an answer is the end."""
    max_turns: int = 8
    """The policy has this many turns in a conversation."""
    max_prompt_length: int = 1024
    """Conversations open with this many tokens at the most."""
    timeout: float = 60.0
    """A reset or a step has this many seconds; a conversation in which one takes longer, or raises, is not trained on.
    """

    def unread(self) -> dict[str, str]:
        names = ("max_turns", "max_prompt_length", "timeout")
        return {} if self.make else dict.fromkeys(names, "without --environment.make")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineFlags(RunFlags):
    """Of any run that trains on what its policy samples."""

    model: str
    """Training begins with this model: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT
    adapter or run directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    rewards: str
    """Completions are graded by these rewards, NAME[=WEIGHT][,...], each perhaps with (key=value, ...)."""
    max_steps: int
    """The run takes this many steps, each a batch of rollouts and its updates."""
    group_size: int = 8
    """A prompt is answered this many times."""
    max_new_tokens: int = 256
    """A completion has this many tokens at the most; with --environment.make, all that comes after the opening."""
    microbatch_tokens: int | None = None
    """A micro-batch has this many positions on each device at the most, to bound memory; one episode at least. The loss
    and gradient stay the same. By default 16384, or on CPUs what keeps weights, optimiser state and
    activations within half of the machine's memory."""
    temperature: float = temperature_field()
    """Completions are drawn at this temperature, and the policy is trained at it."""
    too_long: Literal["error", "drop"] = "error"
    """Prompts that leave no room for --max-new-tokens in the model's context end the run, or are left out, which
    metrics count."""
    reward_timeout: float = 60.0
    """Each reward has this many seconds for the completions that it is asked about; the last of a step are those that
    finished last."""
    unsafe_code_without_sandbox: bool = False
    """The completions' code runs where this machine cannot isolate it: it may do whatever you may do."""
    sampling: OnlineSamplingFlags = OnlineSamplingFlags()
    rollouts: RolloutFlags = RolloutFlags()
    environment: EnvironmentFlags = EnvironmentFlags()

    def unread(self) -> dict[str, str]:
        return super().unread() | without_eval_data(self, "rollouts.num_eval_samples")


def check_flags(flags: RunFlags) -> None:
    """Raises InputError for numbers that make no sense."""
    check_positive(flags, "batch_size")
    check_not_negative(flags, "learning_rate", "eval_every", "save_every")
    check_seed(flags.seed)
    check_evaluation(flags.evaluate)
    if isinstance(flags, TrainingFlags):
        check_positive(flags, "learning_rate", "num_microbatches")
        check_not_negative(flags, "workers")
    if isinstance(flags, AnsweringFlags):
        check_not_negative(flags, "sample_prompts")
    if hasattr(flags, "lora"):
        check_positive(flags.lora, "alpha", prefix="lora.")
    _check_duration(flags)


def _check_duration(flags: RunFlags) -> None:
    """Raises InputError unless the flags say once how long the run is."""
    names = [name for name in ("max_steps", "num_epochs", "max_tokens") if hasattr(flags, name)]
    given = [name for name in names if getattr(flags, name) is not None]
    if len(given) != 1:
        *others, last = (f"--{name.replace('_', '-')}" for name in names)
        raise InputError(f"give one of {', '.join(others)} and {last}, which say how long the run is")
    check_positive(flags, *given)
    if given == ["num_epochs"] and len(flags.data) > 1:
        raise InputError("--num-epochs: several sources are mixed by weight, and none ends with another; give "
                         "--max-steps, or one source, such as a glob")


def check_online_flags(flags: OnlineFlags) -> None:
    """Raises InputError for numbers that make no sense."""
    check_flags(flags)
    check_positive(flags, "group_size", "max_new_tokens", "microbatch_tokens", "reward_timeout")
    check_positive(flags.environment, "max_turns", "max_prompt_length", "timeout", prefix="environment.")
    check_temperature(flags.temperature)
    check_positive(flags.rollouts, "num_slots", "num_eval_samples", prefix="rollouts.")
    check_not_negative(flags.rollouts, "log_completions_every", prefix="rollouts.")
    flags.sampling.controls(flags.temperature)
