"""The policy's loss in online training: its flags, and the objective that they describe."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Literal

from cli.checks import check_not_negative, check_positive
from cli.command import print_once
from cli.flags import OnlineFlags
from errors import InputError
from models.settings import LoRAConfig
from objectives.settings import Algorithm, PolicyLoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlgorithmFlags(Algorithm):
    """What is changed rarely."""

    kl: str | None = None
    """The KL is estimated by k1, k2 or k3; by default by k3 in the loss, and by k1 in the reward, where only k1 has the
    gradient of the KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The KL of --beta counts in the loss or in the reward."""
    nll_coefficient: float = 0.0
    """The mean NLL of right answers' tokens has this weight beside the policy's loss (VAPO; 0.1 there)."""
    nll_reward: float = 1.0
    """An answer is right with this reward, or more."""

    def unread(self) -> dict[str, str]:
        return {} if self.nll_coefficient else {"nll_reward": "without --algorithm.nll-coefficient"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyFlags(PolicyLoss, OnlineFlags):
    """Of a run that updates a policy on what it samples."""

    num_minibatches: int = 1
    """The rows of a batch of rollouts are split into this many updates."""
    num_iterations: int = 1
    """A batch of rollouts is gone through this many times."""
    objective: str | None = None
    """The loss is this function (scores, batch) -> Loss, as package.module:name or package.module:name(key=value, ...),
    in place of objectives.grpo and its settings (docs/new_objective.md)."""
    algorithm: AlgorithmFlags = AlgorithmFlags()
    lora: LoRAConfig = LoRAConfig()

    @property
    def num_updates(self) -> int:
        """Of the policy in a step."""
        return self.num_minibatches * self.num_iterations

    def unread(self) -> dict[str, str]:
        replaced = (*loss_settings(self), "algorithm.nll_coefficient") if self.objective else ()
        return super().unread() | dict.fromkeys(replaced, "beside --objective, which takes its place")


def check_policy(flags: PolicyFlags) -> None:
    """Raises InputError for flags that do not go together."""
    check_positive(flags, "num_minibatches", "num_iterations")
    check_not_negative(flags.algorithm, "nll_coefficient", prefix="algorithm.")
    if flags.algorithm.nll_coefficient and flags.algorithm.mask_truncated:
        raise InputError("--algorithm.nll-coefficient counts tokens of all completions, and --algorithm.mask-truncated "
                         "leaves some out; give one of them")
    if flags.batch_size % flags.num_minibatches:
        raise InputError(f"--batch-size {flags.batch_size} prompts do not divide into --num-minibatches "
                         f"{flags.num_minibatches}; change one of them")


def tell_unclipped(flags: PolicyFlags) -> None:
    """A line where bounds were given that clip nothing."""
    bounds = [getattr(flags, name) for name in ("epsilon_low", "epsilon_high")]
    defaults = [getattr(type(flags), name) for name in ("epsilon_low", "epsilon_high")]
    if flags.num_updates == 1 and (bounds != defaults or flags.algorithm.delta is not None):
        print_once("note: with one update a batch the policy is the old one, all ratios are 1, and no epsilon or delta "
                   "clips any; --num-minibatches or --num-iterations make more updates")


def with_kl(flags: PolicyFlags) -> PolicyFlags:
    """The flags with --algorithm.kl's default made concrete."""
    kl = flags.algorithm.kl or {"loss": "k3", "reward": "k1"}[flags.algorithm.kl_in]
    return dataclasses.replace(flags, algorithm=dataclasses.replace(flags.algorithm, kl=kl))


def loss_settings(flags: PolicyFlags) -> dict[str, Any]:
    """The settings of objectives.grpo by their flags, algorithm.NAME or NAME; not those of a KL that is in the reward.
    """
    from objectives.grpo import Settings

    groups = {field.name: "algorithm." for field in dataclasses.fields(Algorithm)}
    elsewhere = ("beta", "kl") if flags.algorithm.kl_in == "reward" else ()
    names = [groups.get(field.name, "") + field.name for field in dataclasses.fields(Settings)
             if field.name not in elsewhere]
    return {name: operator.attrgetter(name)(flags) for name in names}


def make_objective(flags: PolicyFlags, configure: Callable[..., Any]) -> Any:
    """The objective that the flags describe, `configure` with these settings. Raises InputError where they describe
    none."""
    from data.specs import load_function
    from objectives.positive_nll import with_nll

    settings = {name.rpartition(".")[2]: value for name, value in loss_settings(with_kl(flags)).items()}
    try:
        objective = configure(**settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    if flags.objective:
        return load_function(flags.objective)
    coefficient = flags.algorithm.nll_coefficient
    return with_nll(objective, coefficient) if coefficient else objective


def computed_columns(flags: PolicyFlags) -> tuple[str, ...]:
    """What `nll_columns` gives."""
    return ("nll_weights",) if flags.algorithm.nll_coefficient else ()


def nll_columns(flags: PolicyFlags, batch: Any, rewards: Any) -> dict[str, Any]:
    """The column that the NLL of right answers takes, of a batch on the host with these rewards [N]; {} without."""
    from rollouts.credit import nll_weights

    if not flags.algorithm.nll_coefficient:
        return {}
    return {"nll_weights": nll_weights(batch, rewards, flags.algorithm.nll_reward, flags.num_minibatches,
                                       flags.loss_aggregation == "token_mean")}
