"""What a resumed run may change: what leaves its mathematics as it was; and the line that says so."""

import contextlib
import dataclasses
import json

import pytest
import tiny
import yaml

from cli import resume
from cli.experiment import check_output_dir, resolve
from cli.resume import MAY_DIFFER, SPLIT, check_place, check_steps, split_of, stored_dtype, tell
from errors import InputError
from scripts import grpo, pretrain, sft
from training.optimizer import OptimizerConfig
from training.runs import check_free, read_config, start


@pytest.fixture
def run(tmp_path):
    """A run directory of so many steps, some of them made; gives the flags for another number of them."""

    def run(old, done, new, script=sft, updates=1, learning_rate=1e-3, tokens=64, idle=0, whose="",
            num_epochs=None, **schedule):
        required = {"model": "m", "data": (), "output_dir": str(tmp_path / "run")}
        required |= {"rewards": "length"} if script is grpo else {"num_epochs": num_epochs}
        flags = script.Config(**required, max_steps=new, learning_rate=learning_rate,
                              optimizer=OptimizerConfig(**schedule))
        steps = old if isinstance(old, dict) else {"max_steps": old}
        (tmp_path / "run" / "checkpoints" / str(done)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(flags) | {"data": []} | steps))
        check_steps(flags, updates, tokens, idle, whose)

    return run


@pytest.mark.parametrize(("old", "done", "new", "schedule", "line"), [
    (10, 10, 20, {"schedule": "constant", "warmup_steps": 3}, "the learning rate stays as it is"),
    (10, 8, 20, {"schedule": "wsd"}, "the wsd schedule decays after step 16, up to the last"),
    (10, 5, 8, {"schedule": "wsd"}, "decays after step 6"), (20, 12, 15, {"schedule": "constant"}, "stays as it is"),
    (10, 0, 20, {"schedule": "cosine"}, "the cosine schedule decays after step 0"),
    (10, 3, 20, {"schedule": "linear", "warmup_steps": 3}, "the linear schedule decays after step 3")])
def test_steps_that_had_the_same_rates_may_become_others(run, capsys, old, done, new, schedule, line):
    run(old, done, new, **schedule)
    out = capsys.readouterr().out
    assert out.startswith(f"note: --max-steps {new}, {old} before: ")
    assert line in out
    assert out.count("\n") == 1


@pytest.mark.parametrize(("old", "done", "new", "schedule", "words"), [
    (10, 10, 20, {"schedule": "wsd"}, "the wsd schedule would have given them other learning rates"),
    (10, 9, 20, {"schedule": "wsd", "decay_fraction": 0.3},
     "only a constant one, and wsd before its decay, can be made longer; train on from its weights by --model"),
    (10, 2, 20, {"schedule": "cosine"}, "the cosine schedule would have given them other learning rates"),
    (10, 9, 11, {"schedule": "linear"}, "holds a run of 10 steps, of which 9 are made"),
    (10, 9, 8, {"schedule": "constant"}, "--max-steps 8 is fewer")])
def test_steps_that_would_have_had_other_rates_are_refused(run, old, done, new, schedule, words):
    with pytest.raises(InputError, match=words) as error:
        run(old, done, new, **schedule)
    assert "\n" not in str(error.value)


def test_updates_are_counted_where_a_step_has_several(run):
    run(10, 8, 20, grpo, updates=3, schedule="wsd")
    with pytest.raises(InputError, match="other learning rates"):
        run(10, 9, 20, grpo, updates=3, schedule="wsd")


def test_steps_without_updates_are_not_counted_and_the_critics_schedule_is_told_apart(run, capsys):
    run(10, 4, 20, grpo, updates=3, idle=4, whose="critic's ", schedule="linear")
    run(10, 8, 20, grpo, updates=3, idle=4, schedule="wsd", decay_fraction=0.3)  # of 18 updates 12 are made, 5 decay
    critics, told = capsys.readouterr().out.splitlines()
    assert told == "note: --max-steps 20, 10 before: the wsd schedule decays after step 15, up to the last"
    assert critics.endswith("the critic's linear schedule decays after step 4, up to the last")
    with pytest.raises(InputError, match="the critic's linear schedule would have given them other"):
        run(10, 8, 20, grpo, updates=3, idle=4, whose="critic's ", schedule="linear")


def test_tokens_are_steps_of_so_many(run, capsys):
    run({"max_steps": None, "max_tokens": 640}, 10, 20, pretrain, tokens=64, schedule="constant")
    assert "--max-steps 20, 10 before" in capsys.readouterr().out
    run({"max_steps": None, "max_tokens": 1280}, 10, 20, pretrain, tokens=64, schedule="cosine")
    assert capsys.readouterr().out == ""


def test_other_epochs_are_told_by_their_steps(run, capsys):
    run(10, 8, 20, schedule="wsd", num_epochs=2.0)
    assert "note: --num-epochs 2 (20 steps), 10 before" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"with --num-epochs 2 \(20 steps\) the cosine schedule"):
        run(10, 8, 20, schedule="cosine", num_epochs=2.0)


def test_the_same_steps_say_nothing(run, capsys):
    run(10, 9, 10, schedule="cosine")
    assert capsys.readouterr().out == ""


def test_how_a_step_is_computed_may_differ_and_is_told(tmp_path, capsys):
    config = {"model": "m", "num_microbatches": 1, "remat": "none", "attention": "auto", "beta": 0.0}
    config |= {"lora": {"rank": 4}, "mesh": {"data": -1, "fsdp": 1, "tensor": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    now = config | {"num_microbatches": 4, "remat": "full", "attention": "xla", "save_every": 3}
    now |= {"mesh": {"data": 1, "fsdp": 4, "tensor": 2, "slice": 1, "rules": ("residual_length=tensor",)}}
    tell(check_free(tmp_path, now, MAY_DIFFER))
    out = capsys.readouterr().out
    assert "--num-microbatches 4, 1 before; --remat full, none before; --attention xla, auto before" in out
    assert out.count("\n") == 1
    tell(check_free(tmp_path, config, MAY_DIFFER))
    assert capsys.readouterr().out == ""
    for changed, words in (({"lora": {"rank": 8}}, "lora.rank: 4 there, 8 now"),
                           ({"beta": None}, "beta: 0 there, none now"),
                           ({"model": ["a", "b"]}, "model: m there, a b now"),
                           ({"model": "n", "beta": 1.0}, "model: m there, n now; beta: 0 there, 1 now")):
        with pytest.raises(InputError, match=words):
            check_free(tmp_path, config | changed, MAY_DIFFER)


@pytest.mark.parametrize(("given", "stored", "chosen", "found", "told"), [
    ("auto", "float32", "bfloat16", "float32", True), ("auto", "float32", "float32", "float32", False),
    ("bfloat16", "float32", "bfloat16", "bfloat16", False), ("auto", None, "bfloat16", "bfloat16", False)])
def test_auto_is_what_the_run_began_with(tmp_path, capsys, given, stored, chosen, found, told):
    flags = sft.Config(model="m", data=(), output_dir=str(tmp_path), max_steps=1, dtype=given)
    if stored:
        (tmp_path / "config.yaml").write_text(f"dtype: {stored}\n")
    assert stored_dtype(flags, chosen) == found
    assert ("--dtype auto is bfloat16 on this hardware; the run goes on in float32" in capsys.readouterr().out) == told


@pytest.mark.parametrize(("script", "given", "stored", "found"), [
    (sft, {}, {"num_microbatches": 4}, {"num_microbatches": 4}), (sft, {}, {}, {"num_microbatches": None}),
    (sft, {"num_microbatches": 2}, {"num_microbatches": 4}, {"num_microbatches": 2}),
    (grpo, {}, {"microbatch_tokens": 999}, {"microbatch_tokens": 999})])
def test_a_run_goes_on_in_the_micro_batches_that_it_has(tmp_path, capsys, script, given, stored, found):
    """Whatever memory the machine has on which it goes on; unless others are given, which is told."""
    flags = script.Config(model="m", data=(), output_dir=str(tmp_path), max_steps=1, dtype="float32", **given,
                          **({"rewards": "length"} if script is grpo else {}))
    before = json.loads(json.dumps(check_output_dir(flags) | stored))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    flags = resolve(flags)
    assert split_of(flags) == found
    check_output_dir(dataclasses.replace(flags, model="m"))
    assert ("note: the run goes on" in capsys.readouterr().out) == bool(given)


def test_what_is_told_may_differ():
    assert {*resume.TOLD, *SPLIT} <= MAY_DIFFER


@pytest.mark.parametrize(("changed", "refused"), [({"tasks": ("gsm8k",)}, (grpo,)), ({"limit": 5}, (grpo,)),
                                                  ({"at": ("after",)}, ()), ({"max_new_tokens": 9}, ())])
def test_what_a_run_is_judged_by_may_change_where_it_does_not_decide_what_is_drawn(tmp_path, changed, refused):
    """An online run draws no prompts that --evaluate.tasks ask."""
    for script in (sft, grpo):
        run = tmp_path / script.__name__
        flags = script.Config(model="m", data=(), output_dir=str(run), max_steps=3,
                              **({"rewards": "length"} if script is grpo else {}))
        stored = check_output_dir(flags)
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(stored))))
        flags = dataclasses.replace(flags, evaluate=dataclasses.replace(flags.evaluate, **changed))
        with pytest.raises(InputError, match="another experiment") if script in refused else contextlib.nullcontext():
            check_output_dir(flags)


@pytest.fixture
def place(tmp_path):
    """Makes a run that made steps, with its checkpoints; gives the flags of its command."""

    def place(made, checkpoints=(), restart=False, folder=True):
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True) if folder else run.mkdir()
        for step in checkpoints:
            (run / "checkpoints" / str(step)).mkdir()
        (run / "config.yaml").write_text("save_every: 4\n")
        (run / "metrics.jsonl").write_text("".join(f'{{"step": {step + 1}}}\n' for step in range(made)))
        return sft.Config(model="m", data=(), output_dir=str(run), max_steps=20, restart=restart)

    return place


@pytest.mark.parametrize(("made", "folder", "lost"), [(9, True, True), (1, False, True), (8, True, False),
                                                      (0, False, False)])
def test_a_run_that_lost_its_checkpoints_is_not_begun_anew_unasked(place, capsys, made, folder, lost):
    flags = place(made, folder=folder)
    with pytest.raises(InputError, match=f"made {made} steps, .* --restart") if lost else contextlib.nullcontext():
        check_place(flags)
    assert ("begin anew" in capsys.readouterr().out) == (made > 0 and not lost)


def test_a_run_with_a_checkpoint_goes_on(place, capsys):
    check_place(place(30, checkpoints=(28,)))
    assert capsys.readouterr().out == ""


def test_restart_moves_the_run_away(place, tmp_path, capsys):
    for number in (1, 2):
        check_place(place(9, checkpoints=(8,), restart=True))
        assert not (tmp_path / "run").exists()
        assert (tmp_path / f"run.{number}" / "checkpoints" / "8").exists()
        assert f"is now in {tmp_path}/run.{number}" in capsys.readouterr().out
    check_place(dataclasses.replace(place(0), output_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_other_flags_are_recorded_with_the_step(tmp_path):
    config = {"model": "m", "save_every": 4, "lora": {"rank": 4}, "max_steps": 8}
    start(tmp_path / "run", config, tiny.CONFIG, None)
    run = tmp_path / "run"
    start(run, config, tiny.CONFIG, None)
    assert "history" not in read_config(run)
    (run / "checkpoints" / "4").mkdir(parents=True)
    longer = config | {"max_steps": 16, "save_every": 2}
    start(run, longer, tiny.CONFIG, None)
    changed = {"max_steps": {"before": 8, "now": 16}, "save_every": {"before": 4, "now": 2}}
    assert read_config(run) == longer | {"history": [{"from_step": 4, "changed": changed}]}
    assert check_free(run, config, MAY_DIFFER) == {"save_every": (2, 4), "max_steps": (16, 8)}
    start(run, config, tiny.CONFIG, None)
    assert len(read_config(run)["history"]) == 2
