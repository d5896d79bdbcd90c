"""What a run says of its policy's loss. No jax is imported, so that --help is quick."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """What one chooses first."""

    epsilon_low: float = 0.2
    """A ratio counts down to 1 - epsilon_low (clip only)."""
    epsilon_high: float = 0.2
    """A ratio counts up to 1 + epsilon_high; above epsilon_low it is DAPO's clip-higher (0.28 there)."""
    importance_sampling_level: str = "token"
    """The ratio to the old policy is each token's (GRPO, PPO); sequence: a row's geometric mean (GSPO); sequence_token:
    its value with each token's own gradient; product: of the whole completion (TRL's RLOO)."""
    loss_aggregation: str = "token_mean"
    """The tokens' losses make one by token_mean over the whole batch (DAPO); sequence_mean, of rows' means (GRPO); or
    constant, the sum over rows and constant_length (Dr. GRPO)."""
    beta: float = 0.0
    """The KL to the reference has this weight in the loss."""
    importance_sampling_correction: str = "none"
    """Weights correct for the sampler's distribution, where it is not the trainer's: token_truncate (TIS) and
    sequence_truncate cut exp(old - sampler) to floor and cap; token_mask and sequence_mask leave out what is beyond;
    geometric_mask weighs nothing, and leaves out rows whose geometric mean is beyond."""
    importance_sampling_cap: float = 3.0
    """The correction's weights exp(old - sampler) are this large at the most."""
    importance_sampling_floor: float = 0.0
    """The correction's weights exp(old - sampler) are this small at the least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What is changed rarely."""

    loss: str = "clip"
    """The loss is clip (PPO's), or cispo: the ratio, cut at 1 + epsilon_high, as a weight without gradient."""
    delta: float | None = None
    """A ratio where A < 0 counts up to this one (dual clip, of the loss clip; 3 in verl); above 1 + epsilon_high."""
    constant_length: float | None = None
    """The aggregation "constant", and it alone, divides by this many tokens, usually the largest length of a
    completion."""
    kl: str = "k3"
    """The KL is estimated by k1, k2 or k3."""
    kl_weighted: bool = False
    """The KL's estimate is multiplied by the ratio, with the ratio's gradient."""
    entropy_coefficient: float = 0.0
    """The bonus for entropy has this weight."""
    mask_truncated: bool = False
    """Completions that were cut at the largest length are no targets."""
