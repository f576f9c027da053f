import contextlib
import resource
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from bvit import checkpoint
from bvit.checkpoint import CheckpointError, Checkpoints, CheckpointWriteError
from bvit.sharding import make_mesh, replicated


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, with different values in each."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def make_state(value, width=4, averaged=False):
    # Large and random, so that its values lie in a file of their own, and not inside an index.
    def draw(seed):
        values = np.random.default_rng((value, seed)).normal(size=(width, 2000))
        return {"kernel": jnp.asarray(values, jnp.float32)}

    return {
        "params": draw(0),
        "model_state": {"batch_stats": draw(1)},
        "ema_params": draw(2) if averaged else None,
        "opt_state": (optax.EmptyState(), optax.TraceState(draw(3))),
        "step": value,
    }


def variables_of(state):
    return {"params": state["ema_params"] or state["params"], **state["model_state"]}


def abstract(tree):
    place = replicated(make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=place), tree
    )


def go_on(folder, like=None):
    """What a training restores."""
    return Checkpoints(folder).restore_state(abstract(make_state(0)) if like is None else like)


def use(folder, like=None):
    """What a use of the model restores."""
    like = abstract(variables_of(make_state(0))) if like is None else like
    return Checkpoints(folder).restore_variables(like)


RESTORED = {go_on: lambda state: state, use: variables_of}
both = pytest.mark.parametrize("restore", RESTORED)


def check(restore, found, step):
    """That a step was restored, with its values and in its structure."""
    assert found[0] == step
    jax.tree.map(np.testing.assert_array_equal, found[1], RESTORED[restore](make_state(step)))


def damage(folder, change, pattern="*"):
    """Changes the largest file of a checkpoint whose name fits: of all, the one with the values."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(change(path.read_bytes()))


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@both
def test_the_newest_is_restored_as_it_was_saved(saved, restore):
    check(restore, restore(saved), 3)


@both
def test_nothing_to_restore(tmp_path, restore):
    assert restore(tmp_path / "none") is None


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [4, 3]
    assert sorted(path.name for path in tmp_path.glob("*.seal")) == ["3.seal", "4.seal"]


def test_checksums_are_made_while_training_goes_on(tmp_path, monkeypatch):
    threads, checksum = [], checkpoint._checksum

    def recorded(path):
        threads.append(threading.current_thread())
        return checksum(path)

    monkeypatch.setattr(checkpoint, "_checksum", recorded)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    assert threads and threading.main_thread() not in threads
    assert sorted(path.name for path in tmp_path.glob("*.seal")) == ["1.seal", "2.seal"]


def test_averaged_parameters_are_used_and_both_kinds_restored_for_training(tmp_path):
    state = make_state(1, averaged=True)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    _, found = go_on(tmp_path, abstract(state))
    jax.tree.map(np.testing.assert_array_equal, found, state)
    _, found = use(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, variables_of(state))
    with pytest.raises(CheckpointError, match="1 arrays differ, e.g. ema_params/kernel"):
        go_on(tmp_path)


def test_without_a_sharding_arrays_are_on_the_host(saved):
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables_of(make_state(0))
    )
    _, found = use(saved, like)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, variables_of(make_state(3)))


@both
@pytest.mark.parametrize(
    "change", [flip_a_bit, lambda content: content[: len(content) // 2], lambda content: b""]
)
def test_a_damaged_checkpoint_is_skipped(saved, change, restore):
    damage(saved / "3" / "model", change)
    check(restore, restore(saved), 2)


def test_only_training_reads_what_only_training_needs(saved):
    damage(saved / "3" / "training", flip_a_bit)
    check(use, use(saved), 3)
    check(go_on, go_on(saved), 2)


@both
def test_a_checkpoint_without_its_seal_is_trusted_if_it_reads(saved, restore):
    (saved / "3.seal").unlink()
    check(restore, restore(saved), 3)


@both
@pytest.mark.parametrize("pattern", ["*", "_METADATA"])
def test_a_damaged_checkpoint_without_its_seal_is_skipped(saved, pattern, restore):
    (saved / "3.seal").unlink()
    damage(saved / "3" / "model", lambda content: content[: len(content) // 2], pattern)
    check(restore, restore(saved), 2)


@both
def test_when_all_are_damaged_the_run_does_not_start_over_silently(saved, restore):
    for step in (1, 2, 3):
        damage(saved / str(step) / "model", flip_a_bit)
    with pytest.raises(CheckpointError, match="every checkpoint"):
        restore(saved)


def test_a_checkpoint_of_another_model_is_an_error(saved):
    other = make_state(0, width=5)
    with pytest.raises(CheckpointError, match=r"another model: 3 arrays.*kernel is \(4, 2000\)"):
        go_on(saved, abstract(other))
    with pytest.raises(CheckpointError, match=r"another model: 2 arrays.*kernel is \(4, 2000\)"):
        use(saved, abstract(variables_of(other)))
    with pytest.raises(CheckpointError, match="another model"):
        use(saved, abstract({"params": {"other": jnp.zeros(3)}}))


@both
def test_a_checkpoint_of_before_there_were_two_items_is_restored(tmp_path, restore):
    state = make_state(7)
    manager = ocp.CheckpointManager(tmp_path, item_handlers=ocp.StandardCheckpointHandler())
    manager.save(7, args=ocp.args.StandardSave(state))
    manager.close()
    check(restore, restore(tmp_path), 7)


@pytest.fixture
def full_disk():
    """While active, no file can grow beyond 4 kB: writing fails as on a full disk."""

    @contextlib.contextmanager
    def full():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full


def test_a_full_disk_is_an_error_and_the_checkpoints_before_are_kept(saved, full_disk):
    checkpoints = Checkpoints(saved, keep=3)
    with (
        full_disk(),
        pytest.raises(CheckpointWriteError, match="step 4 could not.*room"),
    ):
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
    checkpoints.close()
    check(go_on, go_on(saved), 3)


def test_after_room_was_made_the_step_is_saved(saved, full_disk):
    checkpoints = Checkpoints(saved, keep=3)
    with full_disk(), pytest.raises(CheckpointWriteError):
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
    checkpoints.close()
    time.sleep(1)  # threads of tensorstore, which end with their process, still write
    again = Checkpoints(saved, keep=3)
    again.save(4, make_state(4))
    again.close()
    check(go_on, go_on(saved), 4)


def test_a_copy_that_is_made_while_checkpoints_are_written_can_be_used(tmp_path):
    """It has half a checkpoint, or half of one that is being deleted; and a whole one."""
    folder, copies = tmp_path / "checkpoints", []
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()

    def train():
        for step in range(2, 14):
            checkpoints.save(step, make_state(step))

    training = threading.Thread(target=train)
    training.start()
    while training.is_alive():
        copies.append(tmp_path / f"copy{len(copies)}")
        subprocess.run(["cp", "-r", folder, copies[-1]], capture_output=True)
    training.join()
    checkpoints.close()
    assert len(copies) > 3
    for copy in copies[:: len(copies) // 4]:
        for restore in RESTORED:
            found = restore(copy)
            check(restore, found, found[0])
