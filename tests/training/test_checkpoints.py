"""Checkpoints that are damaged, of another model, on another mesh, kept as the best, or cannot be written."""

import errno
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny

from errors import InputError
from models.transformer import Transformer
from sharding.mesh import MeshConfig, make_layout
from training import checkpoints, reading
from training.checksums import checksums
from training.runs import every_checkpoint
from training.state import init_state

POSITION = [{"next": 3}, {"next": [1, 2]}]


def make_state(layout, lora=None, seed=0):
    """Step 0; another seed is another key and other optimiser state, so that nothing restored is there by chance."""
    variables = tiny.variables_on(layout, lora)
    model = Transformer(tiny.CONFIG, lora, layout=layout)
    state = init_state(model, variables["params"], optax.adamw(1e-3), jax.random.key(seed), layout)
    draw = np.random.default_rng(seed)

    def fill(leaf):
        return jax.device_put(draw.uniform(1, 100, leaf.shape).astype(leaf.dtype), leaf.sharding)

    return state.replace(opt_state=jax.tree.map(fill, state.opt_state))


def at(state, step):
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


def numbers(state):
    """Every number of a state, by name."""
    leaves = {"trainable": state.trainable, "opt": state.opt_state, "rng": jax.random.key_data(state.rng)}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)}


def assert_same(one, two):
    one, two = numbers(one), numbers(two)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


def restore(run, state):
    with checkpoints.open_manager(run) as manager:
        return checkpoints.restore_newest(manager, state)


def steps(run):
    return checkpoints.finished_steps(run / "checkpoints")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2; what was saved has seed 5, step 1 with seed 6."""
    run = tmp_path_factory.mktemp("saved")
    with checkpoints.open_manager(run) as manager:
        for step, seed in ((1, 6), (2, 5)):
            checkpoints.save(manager, at(make_state(tiny.one_device(), seed=seed), step), [*POSITION, step], None)
        manager.wait_until_finished()
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder / "trainable")
    path.write_bytes(path.read_bytes()[:1000])


def zero(folder):
    path = largest(folder / "progress" / "ocdbt.process_0")
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def edit_position(folder):
    path = folder / "data" / "metadata"
    text = path.read_text()
    assert '"next": 3' in text
    path.write_text(text.replace('"next": 3', '"next": 7'))


DAMAGES = {
    "array file truncated": truncate,
    "array file gone": lambda folder: largest(folder / "trainable").unlink(),
    "array file zeroed": zero,
    "bit flipped in weights": lambda folder: flip(largest(folder / "trainable")),
    "bit flipped in optimiser state": lambda folder: flip(largest(folder / "progress" / "ocdbt.process_0")),
    "position changed": edit_position,
    "position gone": lambda folder: (folder / "data" / "metadata").unlink(),
    "manifest gone": lambda folder: (folder / "trainable" / "manifest.ocdbt").unlink(),
    "list of arrays is garbage": lambda folder: (folder / "progress" / "_METADATA").write_bytes(b"garbage"),
    "list of arrays is empty": lambda folder: (folder / "progress" / "_METADATA").write_bytes(b"{}"),
    "position is no mapping": lambda folder: (folder / "data" / "metadata").write_bytes(b"[1]"),
    "no optimiser state": lambda folder: shutil.rmtree(folder / "progress"),
    "no weights": lambda folder: shutil.rmtree(folder / "trainable"),
    "empty": lambda folder: [shutil.rmtree(item) for item in folder.iterdir() if item.is_dir()],
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(reading, "DELAYS", (0.0,) * len(reading.DELAYS))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(run, damage, capfd):
    damage(run / "checkpoints" / "2")
    state, position = restore(run, make_state(tiny.one_device()))
    assert_same(state, make_state(tiny.one_device(), seed=6))
    assert (int(state.step), position) == (1, [*POSITION, 1])
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(f"warning: {run}/checkpoints/2: the checkpoint is incomplete or damaged (")
    assert (run / "checkpoints" / "damaged-2").is_dir()
    assert steps(run) == [1]


def test_the_same_step_is_saved_again_and_may_be_damaged_again(run, capfd):
    for damaged in (["damaged-2"], ["damaged-2", "damaged-2-1"]):
        truncate(run / "checkpoints" / "2")
        with checkpoints.open_manager(run) as manager:
            state, position = checkpoints.restore_newest(manager, make_state(tiny.one_device()))
            checkpoints.save(manager, at(state, 2), position, None)
        assert sorted(path.name for path in (run / "checkpoints").glob("damaged-*")) == damaged
        assert int(restore(run, make_state(tiny.one_device()))[0].step) == 2
    assert capfd.readouterr().err.count("warning") == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_bit_counts_in_a_checksum(dtype):
    size, everywhere = jnp.dtype(dtype).itemsize, make_state(tiny.one_device()).step.sharding
    arrays = {}
    for bit in range(2 * 3 * 8 * size):
        content = np.zeros(2 * 3 * size, np.uint8)
        content[bit // 8] = 1 << bit % 8
        arrays[str(bit)] = jax.device_put(content.view(dtype).reshape(2, 3), everywhere)
    sums = checksums(arrays).values()
    assert 0 not in sums
    assert len(set(sums)) > len(sums) // 2


def test_all_damaged_is_an_error_and_stays_one(run, capfd):
    for step in (1, 2):
        truncate(run / "checkpoints" / str(step))
    for _ in range(2):  # the second time, nothing is left to try: it must not start anew in the same folder
        with pytest.raises(InputError, match=r"all checkpoints are damaged \(damaged-1, damaged-2\)") as caught:
            restore(run, make_state(tiny.one_device()))
        assert "\n" not in str(caught.value)


def test_what_is_damaged_is_not_opened_as_a_model(run):
    state = make_state(tiny.one_device(), seed=5)
    shapes = shapes_of(state)
    np.testing.assert_array_equal(checkpoints.restore_trainable(run, shapes)["embedding"], state.params["embedding"])
    for damage in (DAMAGES["bit flipped in weights"], truncate):
        damage(run / "checkpoints" / "2")
        with pytest.raises(InputError, match="checkpoints/2: the checkpoint is incomplete or damaged") as caught:
            checkpoints.restore_trainable(run, shapes)
        assert "\n" not in str(caught.value)
    assert steps(run) == [1, 2]


def test_a_checkpoint_is_opened_by_its_step(run):
    state = make_state(tiny.one_device())
    shapes = shapes_of(state)
    np.testing.assert_array_equal(checkpoints.restore_trainable(run, shapes, "1")["embedding"],
                                  state.params["embedding"])
    halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), shapes)
    np.testing.assert_array_equal(checkpoints.restore_trainable(run, halves)["embedding"],
                                  state.params["embedding"].astype(jnp.bfloat16))
    with pytest.raises(InputError, match=r"run@7: no such checkpoint; there are 1, 2$"):
        checkpoints.restore_trainable(run, shapes, "7")
    with pytest.raises(InputError, match="run@best: no checkpoint is known by its eval loss"):
        checkpoints.restore_trainable(run, shapes, "best")


PASSING = [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error"), TimeoutError(),
           PermissionError(13, "denied"), OSError(24, "Too many open files"), KeyError("a bug"),
           *map(ValueError, ("UNAVAILABLE: later", "DEADLINE_EXCEEDED: ", "ABORTED: read [os_error_code='116']",
                             "FAILED_PRECONDITION: read [os_error_code='16']", "UNKNOWN: [os_error_code='5']")),
           jax.errors.JaxRuntimeError("UNAVAILABLE: later")]
LASTING = [ValueError("OUT_OF_RANGE: Requested byte range"), ValueError("NOT_FOUND: [os_error_code='2']"),
           FileNotFoundError(2, "gone"), UnicodeDecodeError("utf-8", b"?", 0, 1, "no"), ValueError("DATA_LOSS: ")]


@pytest.fixture
def reads(monkeypatch):
    """Has the reads of a checkpoint's arrays fail with these errors, one after the other, and at last succeed; those
    that are left are given."""
    restore = ocp.CheckpointManager.restore

    def fail_with(errors):
        waiting = list(errors)

        def read(manager, *given, **named):
            if waiting:
                raise waiting.pop(0)
            return restore(manager, *given, **named)

        monkeypatch.setattr(ocp.CheckpointManager, "restore", read)
        return waiting

    return fail_with


def shapes_of(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                        state.trainable)


def wrapped(error):
    """As Orbax raises what TensorStore says."""
    plain = Exception("Encountered error while reading array")
    plain.__cause__ = error
    return plain


def test_damage_is_on_a_list():
    assert [error for error in PASSING if reading.is_damage(error) or reading.is_damage(wrapped(error))] == []
    assert [error for error in LASTING if not reading.is_damage(error) or not reading.is_damage(wrapped(error))] == []
    assert reading.reason(wrapped(PASSING[-2])) == "Input/output error"


@pytest.mark.parametrize("error", [PASSING[0], wrapped(ValueError("UNAVAILABLE: later")), PASSING[-1]], ids=str)
def test_what_may_pass_is_read_again_and_nothing_is_renamed(run, reads, error, capfd):
    reads([error] * len(reading.DELAYS))
    assert int(restore(run, make_state(tiny.one_device()))[0].step) == 2
    assert capfd.readouterr().err.count("the checkpoint cannot be read") == len(reading.DELAYS)
    reads([error] * (len(reading.DELAYS) + 1))
    with pytest.raises(InputError, match=r"checkpoints/2: the checkpoint cannot be read \(.*\), after 5") as caught:
        restore(run, make_state(tiny.one_device()))
    assert "\n" not in str(caught.value)
    assert steps(run) == [1, 2]


def test_damage_is_what_two_reads_say(run, reads, capfd):
    error = wrapped(LASTING[0])
    reads([error])
    assert int(restore(run, make_state(tiny.one_device()))[0].step) == 2
    assert capfd.readouterr().err == ""
    reads([error, PASSING[0], error])
    assert int(restore(run, make_state(tiny.one_device()))[0].step) == 1
    assert steps(run) == [1]


def test_a_model_is_opened_by_the_same_rule(run, reads):
    shapes = shapes_of(make_state(tiny.one_device()))
    waiting = reads([PASSING[0], LASTING[0], PASSING[1]])
    np.testing.assert_array_equal(checkpoints.restore_trainable(run, shapes)["embedding"],
                                  make_state(tiny.one_device()).params["embedding"])
    assert not waiting
    reads([PASSING[0]] * 5)
    with pytest.raises(InputError, match="checkpoints/2: the checkpoint cannot be read"):
        checkpoints.restore_trainable(run, shapes)
    reads([LASTING[0]] * 2)
    with pytest.raises(InputError, match="checkpoints/2: the checkpoint is incomplete or damaged"):
        checkpoints.restore_trainable(run, shapes)
    assert steps(run) == [1, 2]


def test_no_memory_is_no_damage(run, reads):
    reads([jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of device memory")] * 9)
    with pytest.raises(jax.errors.JaxRuntimeError):
        restore(run, make_state(tiny.one_device()))
    assert steps(run) == [1, 2]


def test_what_a_kill_left_of_a_save_is_no_checkpoint(run, capfd):
    left = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "2" / "trainable", left / "trainable.orbax-checkpoint-tmp")
    assert int(restore(run, make_state(tiny.one_device()))[0].step) == 2
    assert not left.exists()
    assert capfd.readouterr().err == ""


def test_another_model_is_an_error_and_nothing_is_lost(run):
    lora = make_state(tiny.one_device(), tiny.LORA)
    with pytest.raises(InputError, match=r"checkpoints/2: .* another model \(embedding .* absent here\)") as caught:
        restore(run, lora)
    assert "\n" not in str(caught.value)
    state = make_state(tiny.one_device())
    wider = {**state.params, "embedding": jnp.zeros((128, 32))}
    with pytest.raises(InputError, match=r"\(embedding is \(64, 32\) there, \(128, 32\) here\)"):
        restore(run, state.replace(params=wider))
    assert steps(run) == [1, 2]
    assert not state.params["final_norm"]["scale"].is_deleted()


def test_the_best_is_kept_besides_the_newest_two(tmp_path):
    state = make_state(tiny.one_device(), tiny.LORA)
    for keep_best, kept in ((False, [6, 7]), (True, [3, 6, 7])):
        run = tmp_path / str(keep_best)
        for first in (1, 5):  # the best of a run that was stopped in between, too
            with checkpoints.open_manager(run, keep_best=keep_best) as manager:
                for step in range(first, min(first + 4, 8)):
                    loss = {1: 4.0, 3: 1.5, 5: 2.0, 7: 3.0}.get(step)
                    checkpoints.save(manager, at(state, step), POSITION, loss and {"loss": loss})
        assert steps(run) == kept


@pytest.mark.parametrize("shapes", [[(8, 1, 1), (2, 2, 2)], pytest.param(
    [(8, 1, 1), (2, 2, 2), (1, 1, 1), (1, 4, 2)], marks=pytest.mark.slow)], ids=len)
def test_restored_onto_other_meshes(tmp_path, shapes):
    layouts = [make_layout(MeshConfig(*shape), jax.devices()[: np.prod(shape)]) for shape in shapes]
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, at(make_state(layouts[0], tiny.LORA, seed=5), 1), POSITION, None)
    for step, layout in enumerate(layouts[1:], 2):
        with checkpoints.open_manager(tmp_path) as manager:
            state, position = checkpoints.restore_newest(manager, make_state(layout, tiny.LORA))
            assert position == POSITION
            assert all(leaf.sharding.mesh == layout.mesh for leaf in jax.tree.leaves(state.opt_state))
            checkpoints.save(manager, at(state, step), position, None)
    assert_same(state, make_state(layouts[0], tiny.LORA, seed=5))


def test_a_run_may_be_named_from_the_folder_that_one_is_in(tmp_path, monkeypatch):
    """Orbax takes absolute paths alone."""
    state, run = make_state(tiny.one_device(), tiny.LORA), Path("runs/mine")
    monkeypatch.chdir(tmp_path)
    with checkpoints.open_manager(run) as manager:
        checkpoints.save(manager, at(state, 1), POSITION, None)
    with checkpoints.open_manager(run) as manager:
        assert checkpoints.restore_newest(manager, make_state(tiny.one_device(), tiny.LORA))[1] == POSITION
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_trainable(run, state.trainable), state.trainable)


def test_all_checkpoints_of_a_run_by_name(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("model: m\n")
    with pytest.raises(InputError, match="has saved no checkpoint"):
        every_checkpoint(f"{run}@all")
    for step in ("100", "20", "20.partial"):
        (run / "checkpoints" / step).mkdir()
    assert every_checkpoint(f"{run}@all") == {"step-000020": f"{run}@20", "step-000100": f"{run}@100"}
    assert list(every_checkpoint(f"{run}@all")) == ["step-000020", "step-000100"]
    for other in (str(run), f"{run}@20", "name@all"):
        assert every_checkpoint(other) == {"": other}
