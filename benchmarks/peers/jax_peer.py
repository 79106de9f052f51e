"""The bilevel step in JAX: one jit call per step, and the whole synthetic experiment in one jit
call.
"""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers.serve import serve
from benchmarks.workloads import LAM0, OUTER_RATE, RATE, STEPS, WIDTHS, restarts

relu = jax.nn.relu


def conv(x, kernel, stride=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def norm(x, scale, shift):
    return (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-3) * scale + shift


def conv_net(w, x):
    for kernel, bias in zip(w[0:6:2], w[1:6:2], strict=True):
        x = pool(relu(conv(x, kernel) + bias))
    return relu(x.reshape(len(x), -1) @ w[6] + w[7]) @ w[8] + w[9]


def resnet(w, x):
    w = iter(w)
    x = relu(norm(conv(x, next(w)), next(w), next(w)))
    for width in WIDTHS:
        grows = width != x.shape[-1]
        y = relu(norm(conv(x, next(w), 1 + grows), next(w), next(w)))
        y = norm(conv(y, next(w)), next(w), next(w))
        x = relu(y + (conv(x, next(w), 2) if grows else x))
    return x.mean((1, 2)) @ next(w) + next(w)


NETS = {
    "linear": lambda w, x: x @ w[0] + w[1],
    "mlp": lambda w, x: relu(x @ w[0] + w[1]) @ w[2] + w[3],
    "conv": conv_net,
    "resnet": resnet,
}


def cross_entropy(z, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).mean()


def distillation(z, lam, y, teacher):
    soft = -(jax.nn.softmax(teacher / lam[2]) * jax.nn.log_softmax(z / lam[2])).sum(-1).mean()
    return lam[0] * cross_entropy(z, y) + lam[1] * soft


def sgd(weights, gradient):
    return [w - RATE * g for w, g in zip(weights, gradient, strict=True)]


def plain(net, w, lam, train, val):
    "A plain training step."

    def loss(w):
        return distillation(net(w, train["x"]), lam, train["y"], train["teacher_logits"])

    return sgd(w, jax.grad(loss)(w)), jnp.zeros_like(lam)


def double_backward(net, w, lam, train, val):
    "(next weights, hypergradient), by differentiating through the step."

    def outer(lam):
        stepped, _ = plain(net, w, lam, train, val)
        return cross_entropy(net(stepped, val["x"]), val["y"]), stepped

    hypergradient, stepped = jax.grad(outer, has_aux=True)(lam)
    return stepped, hypergradient


def forward(net, w, lam, train, val):
    "The same with a forward product inside a gradient in the metaparameters."
    stepped, _ = plain(net, w, lam, train, val)
    v = jax.grad(lambda w: cross_entropy(net(w, val["x"]), val["y"]))(stepped)

    def loss(w, lam):
        return distillation(net(w, train["x"]), lam, train["y"], train["teacher_logits"])

    def slope(lam):
        return jax.jvp(lambda w: loss(w, lam), (w,), (v,))[1]

    return stepped, -RATE * jax.grad(slope)(lam)


class Peer:
    "One jit call for each step."

    scale, rule = 1, None

    def __init__(self, name, data):
        self.first = [jnp.asarray(w) for w in data.weights], jnp.asarray(LAM0)
        self.train, self.val = (
            {k: jnp.asarray(v) for k, v in batch.items()} for batch in (data.train, data.val)
        )

        def move(w, lam, train, val):
            stepped, hypergradient = type(self).rule(NETS[name], w, lam, train, val)
            return stepped, lam - OUTER_RATE * hypergradient, hypergradient

        self.move = jax.jit(move)

    def reset(self):
        self.weights, self.lam = self.first

    def step(self):
        self.weights, self.lam, self.hypergradient = self.move(
            self.weights, self.lam, self.train, self.val
        )
        self.wait()

    def wait(self):
        jax.block_until_ready((self.weights, self.lam))


class Plain(Peer):
    rule = plain


class DoubleBackward(Peer):
    rule = double_backward


class Forward(Peer):
    rule = forward


class Whole(Peer):
    "Ten restarts of 2,000 steps in one call: vmap over the restarts, scan over the steps."

    def __init__(self, name, data):
        if name != "linear":
            raise ValueError("the whole experiment is on linear only")
        super().__init__(name, data)
        lam, weights = restarts()
        self.first = [jnp.asarray(w) for w in weights], jnp.asarray(lam)

        def run(w, lam, train, val):
            def body(state, _):
                stepped, hypergradient = forward(NETS[name], *state, train, val)
                state = stepped, state[1] - OUTER_RATE * hypergradient
                return state, state[1]

            (w, lam), path = lax.scan(body, (w, lam), None, length=STEPS)
            return w, lam, path

        self.move = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)))


NOTES = {"whole": "10 restarts x 2,000 steps on linear, one call; seconds of the whole"}

if __name__ == "__main__":
    serve(
        {"plain": Plain, "double_backward": DoubleBackward, "forward": Forward, "whole": Whole},
        {},
        NOTES,
    )
