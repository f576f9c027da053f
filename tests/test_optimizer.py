import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bvit.optimizer import decays, make_optimizer, make_schedule


def test_cosine_warms_up_peaks_and_ends_at_zero():
    rate = make_schedule("cosine", learning_rate=0.5, total_steps=100, warmup=0.1)
    assert rate(0) == 0
    np.testing.assert_allclose(rate(5), 0.25)
    np.testing.assert_allclose(rate(10), 0.5)
    np.testing.assert_allclose(rate(55), 0.25, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 0, atol=1e-7)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_steps_decay_at_shares_of_the_training(warmup):
    rate = make_schedule(
        "steps",
        learning_rate=0.1,
        total_steps=90,
        warmup=warmup,
        boundaries=(1 / 3, 2 / 3),
    )
    for step, expected in [(10, 0.1), (29, 0.1), (31, 0.01), (59, 0.01), (61, 0.001)]:
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, err_msg=f"step {step}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "cosine, steps or constant"),
        ({"name": "cosine", "warmup": 1.0}, "share of the training"),
        ({"name": "steps", "boundaries": (30,)}, "shares of the training"),
    ],
)
def test_bad_schedules_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**{"learning_rate": 1.0, "total_steps": 100} | options)


def test_only_kernels_decay():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "pos_embed": jnp.ones(3)}
    assert decays(params) == {"dense": {"kernel": True, "bias": False}, "pos_embed": False}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_with_zero_gradient_only_decayed_parameters_move(name):
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    optimizer = make_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], 1)


def test_sgd_follows_the_published_recurrence():
    # v = momentum * v + (g + decay * w); w = w - rate * v, as in torch.optim.SGD.
    optimizer = make_optimizer(
        "sgd", optax.constant_schedule(0.1), weight_decay=0.01, momentum=0.9, decay_all=True
    )
    weight, velocity = 2.0, 0.0
    params = jnp.array(weight)
    state = optimizer.init(params)
    for gradient in (1.0, -0.5, 0.25):
        updates, state = optimizer.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + gradient + 0.01 * weight
        weight -= 0.1 * velocity
    np.testing.assert_allclose(params, weight, rtol=1e-6)


def test_gradients_are_clipped_to_the_global_norm():
    optimizer = make_optimizer(
        "sgd", optax.constant_schedule(1.0), weight_decay=0.0, momentum=0.0, clip_norm=1.0
    )
    params = {"kernel": jnp.zeros(2)}
    updates, _ = optimizer.update({"kernel": jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-6)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="adamw or sgd"):
        make_optimizer("adam", optax.constant_schedule(1.0), weight_decay=0.0)
