"""The critic of actor-critic training: its flags, and how it is opened."""

import dataclasses
from typing import Any

from cli.checks import check_fraction, check_not_negative, check_positive
from cli.policy import PolicyFlags
from cli.readers import check_reader
from errors import InputError
from models.settings import LoRAConfig
from training.settings import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticFlags:
    """The model that says what states are worth."""

    model: str | None = None
    """The critic begins as this model, whose tokenizer must read what the policy writes: a reward model, a language
    model, or a run of scripts.ppo (its critic), given as --model is; by default as the policy, with values of 0."""
    learning_rate: float = 1e-4
    """The learning rate of the critic rises to this peak and falls as --critic.optimizer.schedule says."""
    lam: float | None = None
    """Returns, which values are trained towards, take this for --lam (VAPO: 1.0 beside a policy's 0.95); by default
    --lam itself."""
    epsilon: float = 0.2
    """A value counts as far as this from what it was before the step."""
    warmup_steps: int = 0
    """In the first so many steps the critic alone is trained."""
    num_minibatches: int = 1
    """The rows of a batch of rollouts are split into this many updates of the critic."""
    num_iterations: int = 4
    """The critic goes through a batch of rollouts this many times."""
    microbatch_tokens: int | None = None
    """A micro-batch of the critic has this many positions on each device at the most; by default --microbatch-tokens.
    """
    lora: LoRAConfig = LoRAConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @property
    def num_updates(self) -> int:
        """Of the critic in a step."""
        return self.num_minibatches * self.num_iterations


def check_critic(critic: CriticFlags, batch_size: int, max_steps: int) -> None:
    """Raises InputError for numbers that make no sense."""
    check_positive(critic, "epsilon", "num_minibatches", "num_iterations", prefix="critic.")
    check_not_negative(critic, "learning_rate", "warmup_steps", prefix="critic.")
    if critic.lam is not None:
        check_fraction(critic, "lam", prefix="critic.")
    if critic.microbatch_tokens is not None:
        check_positive(critic, "microbatch_tokens", prefix="critic.")
    if batch_size % critic.num_minibatches:
        raise InputError(f"--batch-size {batch_size} prompts do not divide into --critic.num-minibatches "
                         f"{critic.num_minibatches}; change one of them")
    if critic.warmup_steps >= max_steps:
        raise InputError(f"--critic.warmup-steps {critic.warmup_steps} must be fewer than --max-steps {max_steps}; the "
                         f"policy would never be trained")


def with_absolute_critic(flags: Any) -> Any:
    """The flags with the critic's path made absolute, so that a run can be opened from anywhere."""
    from training.runs import absolute_reference

    if flags.critic.model is None:
        return flags
    return dataclasses.replace(flags, critic=dataclasses.replace(
        flags.critic, model=absolute_reference(flags.critic.model)))


def for_critic(flags: PolicyFlags, critic: CriticFlags) -> Any:
    """The flags as load_model and open_optimizer take them, with what is the critic's own in place of the policy's."""
    return dataclasses.replace(flags, learning_rate=critic.learning_rate, optimizer=critic.optimizer, lora=critic.lora)


def shares_base(flags: PolicyFlags, critic: CriticFlags) -> bool:
    """Whether policy and critic are adapters of one model, whose weights neither changes."""
    return critic.model is None and bool(flags.lora.rank and critic.lora.rank)


def load_critic(flags: PolicyFlags, critic: CriticFlags, opened: Any, policy: Any, params: Any,
                layout: Any) -> tuple[Any, Any]:
    """(model, params) of an opened critic, with a head of 0 where it has none; of `params`, the policy's own arrays,
    where they share their base."""
    from cli.experiment import load_model
    from models.heads import with_reward_head

    shared = shares_base(flags, critic)
    model, params = (policy.clone(lora=critic.lora), params) if shared else load_model(
        for_critic(flags, critic), opened, layout)
    config, params = with_reward_head(model.config, params, layout)
    return model.clone(config=config), params


def open_critic_of(critic: CriticFlags, policy: Any, tokenizer: Any, longest: int) -> Any:
    """The critic's model, its weights not read yet; `policy` itself where none is named. Raises InputError as
    check_reader does; `longest` is the longest episode, in tokens."""
    from training.runs import open_critic

    if critic.model is None:
        return policy
    opened = open_critic(critic.model)
    check_reader(f"--critic.model {critic.model}", opened, policy, tokenizer, longest,
                 "lower --max-new-tokens")
    return opened
