"""Streams: every row once an epoch whoever reads it, masks kept, positions that any number of readers goes on from."""

import collections
import json

import numpy as np
import pytest
from chat_model import write_model

from batch import COUNT
from data.batches import TrainingBatches
from data.reading import COUNTS, Encoder, read_all
from data.streams import WINDOW, StreamReader, Streams, window_size
from data.tokenizer import open_tokenizer
from errors import InputError

PACKINGS = ["none", "first-fit", "concat-then-split"]
B = 4


class Rows:
    """Row i is its own number, over and over, with a mask that tells even from odd."""

    def __init__(self, count, first=0, bad=()):
        self.count, self.first, self.bad = count, first, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise InputError(f"{self.place(index)}: bad")
        length = 3 + (index * 7) % 22
        return {"tokens": [self.first + index] * length, "loss_mask": [0] + [1 - index % 2 * 0.5] * (length - 1)}

    def place(self, index):
        return f"rows:{index}"


def make(packing, sources=None, weights=(1.0,), length=32, seed=0, batch_size=B, **changes):
    encoder = Encoder(None, 10_000, None if packing == "concat-then-split" else changes.pop("max_length", length),
                      **changes)
    return Streams(tuple(sources or [Rows(48)]), tuple(weights), encoder, batch_size, length, packing, seed)


def read(streams, steps, rows=range(B), workers=0, start=None):
    """Batches of some rows, and the position after them."""
    batches = TrainingBatches(streams, list(rows), workers, start)
    found = [next(batches) for _ in range(steps)]
    position = batches.position()
    batches.close()
    return found, position


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def seen(batches):
    """How many tokens of each row were seen."""
    return collections.Counter(int(token) for batch in batches
                               for token in batch["tokens"][batch["segment_ids"] > 0])


def lengths(rows):
    return {rows.first + index: len(rows[index]["tokens"]) for index in range(len(rows))}


def test_a_position_from_before_counts_were_columns_goes_on():
    """Grain's remainders are known by the names of a stream's columns, which must stay what they were."""
    columns = ("tokens", "loss_mask", "counts", "epoch_end")
    position = [{"parent": {"parent_state": {"parent": {"next_index": 47}, "next": 47},
                            "remainder_slices": {name: [9, 17] for name in columns},
                            "elements_from_buffer_after_checkpoint": 1}, "first": 21, "taken": 5}]
    [batch], _ = read(make("concat-then-split", batch_size=1), 1, range(1), start=position)
    assert batch["tokens"].ravel().tolist() == [9] * 10 + [0] * 3 + [45] * 10 + [7] * 8 + [19]


def test_three_epochs_hold_every_row_three_times():
    batches, _ = read(make("none"), 3 * 48 // B)
    assert seen(batches) == {row: 3 * length for row, length in lengths(Rows(48)).items()}


@pytest.mark.parametrize("packing", PACKINGS[1:])
def test_packed_rows_come_whole_with_their_masks(packing):
    batches, _ = read(make(packing), 40)
    whole, parts = lengths(Rows(48)), 0
    for batch in batches:
        for at in range(B):
            for segment in range(1, batch["segment_ids"][at].max() + 1):
                inside = batch["segment_ids"][at] == segment
                [row] = set(batch["tokens"][at, inside])
                size = int(inside.sum())
                assert batch["positions"][at, inside].tolist() == list(range(size))
                assert batch["loss_mask"][at, inside].tolist() == [0] + [1 - row % 2 * 0.5] * (size - 1)
                parts += size != whole[row]
        assert not batch["loss_mask"][batch["segment_ids"] == 0].any()
    assert (parts > 0) == (packing == "concat-then-split")
    share = np.mean([batch["segment_ids"] == 0 for batch in batches])
    assert share == 0 if packing == "concat-then-split" else share < 0.15


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_position_goes_on_exactly_with_other_readers(packing):
    streams = make(packing)
    whole, _ = read(streams, 30)
    before, position = read(streams, 11)
    assert_same(before, whole[:11])
    position = json.loads(json.dumps([position[row] for row in range(B)]))
    odd, _ = read(streams, 19, [1, 3], start=position)
    even, _ = read(streams, 19, [0, 2], start=position)
    for batch, one, other in zip(whole[11:], odd, even, strict=True):
        width = batch["tokens"].shape[1]  # unpacked, each reader pads its own rows
        for name in ("tokens", "segment_ids", "loss_mask"):
            for rows, part in (([1, 3], one), ([0, 2], other)):
                own = part[name].shape[1]
                np.testing.assert_array_equal(batch[name][rows][:, :own], part[name])
                assert own == width or not batch[name][rows][:, own:].any()


@pytest.mark.parametrize("packing", PACKINGS)
def test_workers_change_nothing(packing):
    streams = make(packing)
    alone, position = read(streams, 12)
    helped, helped_position = read(streams, 12, workers=2)
    assert_same(alone, helped)
    assert position == helped_position


def test_epochs_and_seeds_have_orders_of_their_own():
    steps = 48 // B
    first, position = read(make("none"), steps)
    second, _ = read(make("none"), steps, start=[position[row] for row in range(B)])
    other, _ = read(make("none", seed=1), steps)
    orders = [[row for batch in part for row in batch["tokens"][:, 0]] for part in (first, second, other)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_windows_end_with_the_epoch_and_sort_by_length():
    assert [window_size(step, 48, 4) for step in (0, 8, 12)] == [12, 4, 12]
    assert window_size(0, 10**9, 4) == WINDOW
    assert window_size(0, 10, 4) == 3  # the step that straddles the border belongs to the epoch before
    batches, _ = read(make("none", [Rows(480)]), 120)
    spread = [np.ptp(np.count_nonzero(batch["segment_ids"], axis=1)) for batch in batches]
    assert np.mean(spread) < 6  # rows are 3 to 24 long: in any order, four of them spread over 12 or so


def test_mixtures_keep_to_their_weights():
    streams = make("none", [Rows(30), Rows(30, first=100)], [3.0, 1.0])
    batches, _ = read(streams, 100)
    tokens = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert np.mean(tokens >= 100) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("packing", PACKINGS[:2])
def test_long_rows_are_cut_or_dropped_and_counted(packing):
    long = {row for row, length in lengths(Rows(48)).items() if length > 20}
    for policy, name in (("truncate", 0), ("drop", 1)):
        batches, _ = read(make(packing, max_length=20, too_long=policy), 48)
        rows = np.concatenate([batch["tokens"][batch["segment_ids"] > 0] for batch in batches])
        counts = np.asarray([sum(batch[COUNT + each].sum() for batch in batches) for each in COUNTS])
        assert counts[name] > 0
        assert counts.sum() == counts[name]
        assert (policy == "drop") == (not set(rows.tolist()) & long)
    with pytest.raises(InputError, match=r"rows:\d+: 2\d tokens are longer than the 20 allowed"):
        read(make(packing, max_length=20), 48)


def test_counts_are_of_every_epoch_and_survive_a_resume():
    streams = make("none", max_length=20, too_long="drop")
    whole, _ = read(streams, 60)
    first, position = read(streams, 7)
    second, _ = read(streams, 53, start=[position[row] for row in range(B)])
    total = [sum(batch["count/rows_dropped"].sum() for batch in part) for part in (whole, first + second)]
    assert total[0] == total[1] > 48


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_named_or_skipped(workers):
    streams = make("none", [Rows(48, bad=[17])])
    with pytest.raises(InputError, match="rows:17: bad"):
        read(streams, 12, workers=workers)
    batches, _ = read(make("none", [Rows(48, bad=[17])], bad_rows="skip"), 24, workers=workers)
    assert 17 not in seen(batches)
    assert sum(batch["count/rows_skipped"].sum() for batch in batches) >= 1


def test_rows_of_which_none_can_be_used():
    with pytest.raises(InputError, match="none of 48 rows can be trained on: rows_dropped 48"):
        read(make("none", max_length=2, too_long="drop"), 1)


def test_states_before_the_first_step_are_the_beginning():
    reader = StreamReader(make("none"), range(B))
    assert reader.states == [None] * B


class Long(Rows):
    """Every text fills ten packed rows."""

    def __getitem__(self, index):
        return {"tokens": [self.first + index] * 320}


def test_rows_cut_from_one_text_do_not_follow_each_other():
    batches, _ = read(make("concat-then-split", [Long(48)]), 120)
    texts = np.stack([batch["tokens"][:, 0] for batch in batches])  # [steps, B]; 12 texts a stream
    for row in range(B):
        assert len(set(texts[:10, row])) > 4
        assert len(set(texts[:, row])) == 12, "an epoch is over before the next one begins"
    assert not np.array_equal(texts[:, 0] - texts[0, 0], texts[:, 1] - texts[0, 1])


SHORTENING = ("{% for m in messages %}{{ m.role[0] }}"
              "{{ '..' if m.role == 'assistant' and not loop.last else m.content }}"
              "{{ '<end>' if m.role == 'assistant' }}{% endfor %}{{ 'a' if add_generation_prompt }}")
"""a template that writes an answer out only while it is the last one"""


class Talks(Rows):
    """Conversations of one to three turns."""

    def __getitem__(self, index):
        turns = [[{"role": "user", "content": f"{index:02}?"}, {"role": "assistant", "content": f"{index:02}-{turn}"}]
                 for turn in range(1 + index % 3)]
        return {"messages": sum(turns, [])}


@pytest.mark.parametrize("packing", PACKINGS)
def test_turns_that_are_rows_of_their_own_are_all_seen_and_gone_on_from(packing, tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(SHORTENING)
    encoder = Encoder(folder, 128, None if packing == "concat-then-split" else 64, form="turns")
    streams = Streams((Talks(12),), (1.0,), encoder, B, 64, packing, 0)
    tokenizer = open_tokenizer(folder)
    steps = 16 if packing == "none" else 6
    whole, _ = read(streams, steps)
    text = "".join(tokenizer.decode(row[ids > 0], skip_special_tokens=False)
                   for batch in whole for row, ids in zip(batch["tokens"], batch["segment_ids"]))
    assert {f"a{index:02}-{turn}<end>" for index in range(12) for turn in range(1 + index % 3)} <= {
        f"a{part[-4:]}<end>" for part in text.split("<end>")}
    assert sum(batch["count/rows_added"].sum() for batch in whole) >= 12
    for cut in range(1, steps, 2):
        _, position = read(streams, cut)
        position = json.loads(json.dumps(position))
        assert_same(read(streams, steps - cut, start=[position[str(row)] for row in range(B)])[0], whole[cut:])


def test_turns_that_are_too_long_are_left_out_one_by_one(tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(SHORTENING)
    rows, counts = read_all([Talks(3)], Encoder(folder, 128, 20, "drop", form="turns"))  # of 10, 18 and 26 tokens
    assert [len(row.tokens) for row in rows] == [10, 10, 18, 10, 18]
    assert counts["rows_dropped"] == 1
    assert counts["rows_added"] == 3
