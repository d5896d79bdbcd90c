"""A loss on pairs of answers: its flags, and the objective that they describe."""

import dataclasses
import math
from typing import Any

from errors import InputError

SETTINGS = ("beta", "label_smoothing", "divergence", "alpha", "ld_alpha", "wpo")
"""of --loss"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLossFlags:
    """Of the DPO family; beside ReferenceFlags, and before the flags of a run."""

    loss: str = "sigmoid"
    """The loss, or several with weights: "sigmoid=1.0,sft=0.1"."""
    label_smoothing: float = 0.0
    """This share of pairs is taken to be labelled the wrong way round."""
    divergence: str = "reverse_kl"
    """The distance from the reference is reverse_kl, forward_kl, js_divergence or alpha_divergence."""
    alpha: float = 0.5
    """The alpha_divergence of 1 is the reverse KL, that of 0 the forward KL."""
    ld_alpha: float | None = None
    """The tokens by which one answer is longer than the other have this weight (LD-DPO)."""
    wpo: bool = False
    """Pairs are weighed by how probable the policy finds them (WPO)."""
    objective: str | None = None
    """The loss is this function (scores, batch) -> Loss on pairs, as package.module:name or
    package.module:name(key=value, ...), in place of --loss and its settings."""

    def unread(self) -> dict[str, str]:
        from objectives.dpo import LOSSES, unread

        if self.objective:
            return super().unread() | dict.fromkeys(("loss", *SETTINGS), "beside --objective, which takes its place")
        losses = [each for each in parse_losses(self.loss) if each[0] in LOSSES]
        return super().unread() | unread(losses, self.divergence)


def make_objective(flags: Any) -> Any:
    """The objective that the flags describe. Raises InputError where they describe none."""
    from data.specs import load_function
    from objectives.dpo import configure

    if flags.objective:
        return load_function(flags.objective)
    try:
        return configure(losses=parse_losses(flags.loss), **{name: getattr(flags, name) for name in SETTINGS})
    except ValueError as error:
        raise InputError(str(error)) from None


def parse_losses(text: str) -> tuple[tuple[str, float], ...]:
    """"sigmoid=1.0,sft=0.1" as pairs of name and weight, which is 1 where it is left out. Raises InputError for weights
    that make no loss."""
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    try:
        losses = tuple((name.strip(), float(weight or 1.0)) for name, weight in pairs)
    except ValueError:
        losses = ()
    weights = [weight for _, weight in losses]
    if not any(weights) or not all(map(math.isfinite, weights)):
        raise InputError(f"--loss {text!r}: a weight is no finite number, or all are 0; the form is "
                         f"name=weight,name=weight")
    return losses
