"""Old names of flags, which are refused in one line, and under which older run directories wrote them down."""

GENERATE = {"batch-size": "num-slots"}

EXPORT = {"run": "model"}

GRPO = {
    "num-epochs": "num-iterations",
    "num-microbatches": "microbatch-tokens",
    "ratio": "importance-sampling-level",
    "correction": "importance-sampling-correction",
    "correction-cap": "importance-sampling-cap",
    "correction-floor": "importance-sampling-floor",
    "aggregation": "loss-aggregation",
    "max-draws": "dynamic-sampling-tries",
    "sampling.slots": "rollouts.num-slots",
    "eval-samples": "rollouts.num-eval-samples",
    "show-every": "rollouts.log-completions-every",
    "advantages": "algorithm.advantages",
    "constant-length": "algorithm.constant-length",
    "delta": "algorithm.delta",
    "entropy-coefficient": "algorithm.entropy-coefficient",
    "kl": "algorithm.kl",
    "kl-in": "algorithm.kl-in",
    "kl-weighted": "algorithm.kl-weighted",
    "loss": "algorithm.loss",
    "mask-truncated": "algorithm.mask-truncated",
}
