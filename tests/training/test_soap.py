"""SOAP against the properties stated in its paper, and against optax's Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_md.training.soap import scale_by_soap


def trajectory(optimizer, gradient_fn, params, steps: int):
    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(gradient_fn(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]


def test_diagonal_gradients_give_adam():
    """With diagonal covariances, the eigenvectors are the axes, and SOAP is Adam."""
    curvature = jnp.asarray([3.0, 0.5, 0.1])
    start = {"w": jnp.diag(jnp.asarray([1.0, -2.0, 0.7])), "one": jnp.asarray([0.3])}

    def gradient_fn(p):
        return {"w": jnp.diag(curvature * jnp.diag(p["w"])), "one": 2.0 * p["one"]}

    ours = trajectory(optax.chain(scale_by_soap(0.9, 0.95), optax.scale(-0.05)), gradient_fn, start, 25)
    adam = trajectory(optax.chain(optax.scale_by_adam(0.9, 0.95), optax.scale(-0.05)), gradient_fn, start, 25)
    assert abs(start["w"] - adam["w"]).max() > 0.5
    for name in start:
        # Off the diagonal: rounding, divided by Adam's epsilon of 1e-8.
        np.testing.assert_allclose(ours[name], adam[name], rtol=1e-9, atol=1e-8)


def rotation(key):
    return jnp.linalg.qr(jax.random.normal(key, (5, 5)))[0]


def badly_conditioned(key):
    """A badly conditioned quadratic form of a matrix, whose principal directions are not its axes."""
    a, b = map(rotation, jax.random.split(key))
    spread = jnp.logspace(-2, 0, 5)[None]
    return a * spread @ a.T, b * spread @ b.T


def test_rotated_parameters_take_rotated_steps():
    """Rotating both spaces of a matrix rotates its path under SOAP, unlike under Adam."""
    left, right = badly_conditioned(jax.random.key(0))
    u, v = rotation(jax.random.key(1)), rotation(jax.random.key(2))
    w = jax.random.normal(jax.random.key(3), (5, 5))
    end = {}
    for name, scale in (("soap", scale_by_soap), ("adam", optax.scale_by_adam)):
        optimizer = optax.chain(scale(), optax.scale(-0.02))
        plain = trajectory(optimizer, lambda x: left @ x @ right, w, 40)
        turned = trajectory(optimizer, lambda x: u @ left @ u.T @ x @ v @ right @ v.T, u @ w @ v.T, 40)
        end[name] = float(abs(u.T @ turned @ v - plain).max())
    assert end["soap"] < 1e-6 < 1e-2 < end["adam"]


def test_a_badly_conditioned_loss_falls_faster_than_by_adam():
    left, right = badly_conditioned(jax.random.key(4))
    w = jax.random.normal(jax.random.key(5), (5, 5))
    schedule = optax.cosine_decay_schedule(-0.05, 300)

    def loss(optimizer):
        end = trajectory(
            optax.chain(optimizer, optax.scale_by_schedule(schedule)), lambda x: left @ x @ right, w, 300
        )
        return float(jnp.sum(end * (left @ end @ right)))

    assert loss(scale_by_soap()) < 0.2 * loss(optax.scale_by_adam(0.95, 0.95))


def test_a_leaf_without_gradient_is_unchanged():
    params = {"constant": jnp.ones((3, 2)), "moved": jnp.ones((2, 2))}
    end = trajectory(
        optax.chain(scale_by_soap(refresh_every=2), optax.scale(-0.1)),
        lambda p: {
            "constant": jnp.zeros((3, 2)),
            "moved": p["moved"] * jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
        },
        params,
        7,
    )
    assert (end["constant"] == 1.0).all() and np.isfinite(end["moved"]).all() and (end["moved"] < 1.0).all()
