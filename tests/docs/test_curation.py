"""docs/curation.md: every stage is in its table, and its recipes are recipes."""

import re
from pathlib import Path

import yaml

from curation.recipe import STAGES, load_maker, parse_recipe

TEXT = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()


def test_every_stage_is_in_the_table_with_keys_that_it_takes():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", TEXT, re.MULTILINE))
    assert rows.keys() == STAGES.keys()
    for name, keys in rows.items():
        taken = load_maker(name).__annotations__.keys()
        assert set(re.findall(r"`(\w+)`", keys)) <= taken, name


def test_the_recipes_can_be_read():
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
    assert len(blocks) == 2
    for block in blocks:
        assert parse_recipe(block if isinstance(block, dict) else {"stages": block}).steps
