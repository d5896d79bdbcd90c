"""Log-probability and entropy of every token of given rows."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, Literal

from cli import command
from cli.checks import check_file, check_positive, check_temperature, compute_in, max_row_length, resolve_dtype
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
the pairs that it learnt from. Rows may be pairs, too, with chosen and rejected, as for scripts.dpo: the scores of both
answers are written, as chosen_reward, rejected_logps and the like.

In the end figures over the file are printed with 95 % intervals: loss, perplexity and, of texts, bits per byte; of
pairs, how often the chosen answer has the higher score; of rows with a label (true or false) under a reward model, how
often the reward's sign agrees."""


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
    max_length: int | None = None
    """A row may have this many tokens; by default the model's context."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """Rows over --max-length end the script, are cut, or are left out: their line says so."""
    bad_rows: Literal["error", "skip"] = "error"
    """Rows that cannot be read or scored end the script, or are left out: their line says so."""
    temperature: float = temperature_field()
    """Scores are under softmax(logits / temperature)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls are computed in this type; auto is what is fastest here, on CPUs as measured at the first start."""
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def main(config: Config) -> None:
    from data.chat import explain
    from data.reading import Encoder
    from data.sources import open_in_order, with_template_kwargs
    from evals.scored import as_line, form_of, print_summary, read_records, summary
    from files import whole_lines
    from sharding.hosts import barrier, connect, is_main
    from sharding.mesh import make_layout
    from training.evaluation import score_rows
    from training.progress import track
    from training.runs import open_model

    check_positive(config, "batch_size")
    check_temperature(config.temperature)
    check_file(config.output)
    connect(config.hosts)
    layout = make_layout(config.mesh)
    opened = open_model(config.model)
    max_length = max_row_length(config.max_length, opened.config.max_length)
    encoder = Encoder(opened.tokenizer, opened.config.vocab_size, max_length, config.too_long,
                      config.bad_rows, training=opened.config.reward_head)
    tokenizer = encoder.open_tokenizer()
    sources = with_template_kwargs(open_in_order(config.data), config.chat_template_kwargs, tokenizer)
    encoder = dataclasses.replace(encoder, form=form_of(sources))
    records = read_records(sources, encoder, functools.partial(track, what="reading"))
    for line in explain(records.counts):
        command.print_once(f"note: {line}")
    dtype = compute_in(resolve_dtype(config.dtype))
    model, variables = opened.load(layout, dtype=dtype, param_dtype=dtype)
    scores = score_rows(model, variables, [row for rows in records.rows for row in rows], config.batch_size, layout,
                        make_scorer(opened, config.temperature), functools.partial(track, what="scoring"))
    if is_main():
        rest = iter(scores)
        with whole_lines(Path(config.output)) as write:
            for rows in records.rows:
                write(as_line(rows, list(itertools.islice(rest, len(rows)))))
        print_summary(summary(records, scores, tokenizer), records.counts)
    barrier("scored")
    command.print_once(f"{sum(map(bool, records.rows))} rows scored: {config.output}")


def make_scorer(opened: Any, temperature: float) -> Any:
    """A language model's, or a reward model's. Raises InputError for a temperature where it has no meaning."""
    from models.heads import score_rewards
    from models.scoring import score

    if not opened.config.reward_head:
        return functools.partial(score, temperature=temperature)
    if temperature != 1:
        raise InputError("--temperature has no meaning for a reward model; leave it out")
    return score_rewards


if __name__ == "__main__":
    command.run(main, Config, DESCRIPTION)
