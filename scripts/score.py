"""Log-probability and entropy of every token of given rows."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_file, check_positive, check_temperature, resolve_dtype
from cli.flags import temperature_field
from data.sources import DataSource
from errors import InputError
from sharding.hosts import HostsConfig
from sharding.settings import MeshConfig

DESCRIPTION = """Score rows under a model: one figure a token, or, under a reward model, one reward a row.

  python -m scripts.score --model smollm2-135m-instruct --data rows.jsonl --output scores.jsonl
  python -m scripts.score --model runs/reward --data rows.jsonl --output rewards.jsonl

Rows have tokens, text, messages, or prompt and completion, as for scripts.sft; strings are scored as they are, with no
end token added. Each output row is {"logps": [...], "entropy": [...], "loss_mask": [...]}; index t speaks of token t,
and the first token, which nothing predicts, has 0.

Under a reward model each output row is {"reward": x}, read at the row's last token; strings do get the end token, as in
the pairs that it learnt from."""


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """The rows are scored under this model: embedded (smollm2-135m-instruct), Hub id, preset, folder, .gguf file, PEFT
    adapter or run directory (RUN@best and RUN@STEP are one of its checkpoints)."""
    data: tuple[DataSource, ...]
    """The rows of these sources are scored, given as for scripts.sft."""
    output: str
    """The scores are written to this .jsonl file, a row for each row of the data, in its order."""
    chat_template_kwargs: str | None = None
    """The chat template gets these besides, such as "{enable_thinking: false}"; a row's column chat_template_kwargs
    comes before them."""
    batch_size: int = 8
    """This many rows are scored at a time, over all devices."""
    temperature: float = temperature_field()
    """Scores are under softmax(logits / temperature)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here."""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def main(config: Config) -> None:
    from data.chat import explain
    from data.reading import Encoder, read_all
    from data.sources import open_in_order, with_template_kwargs
    from files import whole_lines
    from sharding.hosts import barrier, connect, is_main
    from sharding.mesh import make_mesh
    from training.evaluation import score_rows
    from training.progress import track
    from training.runs import open_model

    check_positive(config, "batch_size")
    check_temperature(config.temperature)
    check_file(config.output)
    connect(config.hosts)
    mesh = make_mesh(config.mesh)
    opened = open_model(config.model)
    encoder = Encoder(opened.tokenizer, opened.config.vocab_size, opened.config.max_length,
                      training=opened.config.reward_head)
    sources = with_template_kwargs(open_in_order(config.data), config.chat_template_kwargs, encoder.open_tokenizer())
    rows, counts = read_all(sources, encoder, functools.partial(track, what="reading"))
    for line in explain(counts):
        command.print_once(f"note: {line}")
    dtype = resolve_dtype(config.dtype)
    model, variables = opened.load(mesh, dtype=dtype, param_dtype=dtype)
    scorer = make_scorer(opened, config.temperature)
    scores = score_rows(model, variables, rows, config.batch_size, mesh, scorer,
                        functools.partial(track, what="scoring"))
    if is_main():
        with whole_lines(Path(config.output)) as write:
            for row, score in zip(rows, scores, strict=True):
                write(as_line(row, score))
    barrier("scored")
    command.print_once(f"{len(rows)} rows scored: {config.output}")


def make_scorer(opened: Any, temperature: float) -> Any:
    """A language model's, or a reward model's. Raises InputError for a temperature where it has no meaning."""
    from models.heads import score_rewards
    from models.scoring import score

    if not opened.config.reward_head:
        return functools.partial(score, temperature=temperature)
    if temperature != 1:
        raise InputError("--temperature has no meaning for a reward model; leave it out")
    return score_rewards


def as_line(row: Any, score: Any) -> dict[str, Any]:
    """What is written of a row."""
    if hasattr(score, "rewards"):
        return {"reward": score.rewards.item()}
    return {"logps": score.logps.tolist(), "entropy": score.entropy.tolist(), "loss_mask": row.loss_mask.tolist()}


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
