import contextlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def make_state(value, width=4):
    # Large and random, so that its values lie in a file of their own, and not inside an index.
    kernel = np.random.default_rng(value).normal(size=(width, 2000))
    return {"params": {"kernel": jnp.asarray(kernel, jnp.float32)}, "step": value}


def abstract(state):
    place = replicated(make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=place), state
    )


def restore(folder, like=None):
    return Checkpoints(folder).restore_newest(abstract(make_state(0)) if like is None else like)


def damage(folder, change, pattern="*"):
    """Changes the largest file of a checkpoint whose name fits: of all, the one with the values."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(change(path.read_bytes()))


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_the_newest_is_restored_as_it_was_saved(saved):
    step, state = restore(saved)
    assert step == 3
    np.testing.assert_array_equal(state["params"]["kernel"], make_state(3)["params"]["kernel"])


def test_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "none") is None


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [4, 3]
    assert sorted(path.name for path in tmp_path.glob("*.seal")) == ["3.seal", "4.seal"]


@pytest.mark.parametrize(
    "change", [flip_a_bit, lambda content: content[: len(content) // 2], lambda content: b""]
)
def test_a_damaged_checkpoint_is_passed_over(saved, change):
    damage(saved / "3", change)
    step, state = restore(saved)
    assert step == 2
    np.testing.assert_array_equal(state["params"]["kernel"], make_state(2)["params"]["kernel"])


def test_a_checkpoint_without_its_seal_is_trusted_if_it_reads(saved):
    (saved / "3.seal").unlink()
    assert restore(saved)[0] == 3


@pytest.mark.parametrize("pattern", ["*", "_METADATA"])
def test_a_damaged_checkpoint_without_its_seal_is_passed_over(saved, pattern):
    (saved / "3.seal").unlink()
    damage(saved / "3", lambda content: content[: len(content) // 2], pattern)
    assert restore(saved)[0] == 2


def test_when_all_are_damaged_the_run_does_not_start_over_silently(saved):
    for step in (1, 2, 3):
        damage(saved / str(step), flip_a_bit)
    with pytest.raises(CheckpointError, match="every checkpoint"):
        restore(saved)


def test_a_checkpoint_of_another_model_is_an_error(saved):
    with pytest.raises(CheckpointError, match=r"another model.*params/kernel is \(4, 2000\)"):
        restore(saved, abstract(make_state(0, width=5)))
    with pytest.raises(CheckpointError, match="another model"):
        restore(saved, abstract({"params": {"other": jnp.zeros(3)}}))


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


def test_a_full_disk_is_told_and_the_checkpoints_before_are_kept(saved, full_disk):
    checkpoints = Checkpoints(saved, keep=3)
    with (
        full_disk(),
        pytest.raises(CheckpointWriteError, match="step 4 could not.*room"),
    ):
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
    checkpoints.close()
    step, state = restore(saved)
    assert step == 3
    np.testing.assert_array_equal(state["params"]["kernel"], make_state(3)["params"]["kernel"])


def test_after_room_was_made_the_step_is_saved(saved, full_disk):
    checkpoints = Checkpoints(saved, keep=3)
    with full_disk(), pytest.raises(CheckpointWriteError):
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
    checkpoints.close()
    again = Checkpoints(saved, keep=3)
    again.save(4, make_state(4))
    again.close()
    assert restore(saved)[0] == 4
