"""What is written down of rewards and environments that failed."""

import json

from data.prompts import Prompt
from rewards.scoring import Failure
from rollouts.console import log_failures
from rollouts.episodes import Group


def test_failures_of_a_step_take_the_place_of_those_of_a_killed_run(tmp_path):
    def group(error):
        return Group(0, Prompt([1], "a", {}), [], [Failure("r", 1, error, "so")])

    path = tmp_path / "failures.jsonl"
    for step, error in ((1, "one"), (2, "two"), (2, "half a pair: \ud800, ü"), (3, "three")):
        log_failures(path, step, [group(error)])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["error"]) for row in rows] == [(1, "one"), (2, "half a pair: \ud800, ü"), (3, "three")]
