"""The bilevel step in PyTorch: the authors' recipe, double backward, forward products, TorchOpt,
higher and betty.
"""

import importlib.util
import logging
import os
import shutil
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp

from benchmarks.peers.serve import serve
from benchmarks.workloads import LAM0, OUTER_RATE, RATE, RESTARTS, STEPS, WIDTHS, restarts


class Flatten(nn.Module):
    "Flattens as [height, width, channels], the order in which the dense kernel is stored."

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def norm(width):
    return nn.BatchNorm2d(width, eps=1e-3, track_running_stats=False)


class Block(nn.Module):
    def __init__(self, before, width):
        super().__init__()
        self.grows = width != before
        stride, padding = (2, 0) if self.grows else (1, 1)
        self.conv1, self.norm1 = (
            nn.Conv2d(before, width, 3, stride, padding, bias=False),
            norm(width),
        )
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        if self.grows:
            self.project = nn.Conv2d(before, width, 1, 2, bias=False)

    def forward(self, x):
        y = (
            F.pad(x, (0, 1, 0, 1)) if self.grows else x
        )  # where TensorFlow's "SAME" pads at stride 2
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(y)))))
        return F.relu(y + (self.project(x) if self.grows else x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16)
        self.blocks = nn.Sequential(
            *[Block(a, b) for a, b in zip((16, *WIDTHS), WIDTHS, strict=False)]
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def conv_net():
    layers = []
    for before, width in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


NETS = {
    "linear": lambda: nn.Sequential(nn.Linear(3, 2)),
    "mlp": lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
    "conv": conv_net,
    "resnet": ResNet,
}


def tensor(array):
    "A weight in PyTorch's layout."
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return torch.tensor(array.transpose(order).copy() if order else array)


def on_batch(batch):
    "(x, y) or (x, y, teacher_logits) as tensors."
    images = batch["x"].ndim == 4
    x = torch.tensor(batch["x"].transpose(0, 3, 1, 2).copy() if images else batch["x"])
    return (
        x,
        torch.tensor(batch["y"]).long(),
        *(torch.tensor(batch[k]) for k in ("teacher_logits",) if k in batch),
    )


def distillation(z, lam, y, teacher):
    soft = -(F.softmax(teacher / lam[2], 1) * F.log_softmax(z / lam[2], 1)).sum(1).mean()
    return lam[0] * F.cross_entropy(z, y) + lam[1] * soft


class Peer:
    "A student, its batches and its metaparameters."

    scale = 1

    def __init__(self, name, data):
        self.name, self.first, self.start = (
            name,
            [tensor(w) for w in data.weights],
            torch.tensor(LAM0),
        )
        (self.x, self.y, self.teacher), (self.val_x, self.val_y) = (
            on_batch(data.train),
            on_batch(data.val),
        )
        self.net = NETS[name]()
        self.keys = [key for key, _ in self.net.named_parameters()]

    def reset(self):
        self.load(self.first, self.start)
        self.set_up()

    def load(self, weights, lam):
        "Put weights and metaparameters in."
        self.weights, self.lam = list(self.net.parameters()), lam.clone().requires_grad_()
        with torch.no_grad():
            for w, first in zip(self.weights, weights, strict=True):
                w.copy_(first)

    def set_up(self):
        self.sgd = torch.optim.SGD(self.weights, lr=RATE)

    def wait(self):
        pass

    def apply(self, weights, x):
        return functional_call(self.net, dict(zip(self.keys, weights, strict=True)), (x,))

    def inner(self, net):
        return distillation(net(self.x), self.lam, self.y, self.teacher)

    def outer(self, net):
        return F.cross_entropy(net(self.val_x), self.val_y)

    @torch.no_grad()
    def finish(self, hypergradient):
        "The outer step."
        self.hypergradient = hypergradient
        self.lam -= OUTER_RATE * hypergradient


class Plain(Peer):
    "A plain training step, as everybody writes it."

    def step(self):
        self.sgd.zero_grad()
        distillation(self.net(self.x), self.start, self.y, self.teacher).backward()
        self.sgd.step()


class Authors(Peer):
    """The authors' order: a finite difference (DARTS, with 0.01 / |v|), lambda, then a second
    training gradient.
    """

    def set_up(self):
        super().set_up()
        self.virtual = NETS[self.name]()
        self.lam = [torch.tensor(value, requires_grad=True) for value in self.lam.tolist()]
        self.outer_sgd = torch.optim.SGD(self.lam, lr=OUTER_RATE)

    def look_ahead(self):
        "v, the gradient of the validation loss at the next weights."
        gradient = torch.autograd.grad(self.inner(self.net), self.weights)
        with torch.no_grad():
            for ahead, w, g in zip(self.virtual.parameters(), self.weights, gradient, strict=True):
                ahead.copy_(w - RATE * g)
        return torch.autograd.grad(self.outer(self.virtual), list(self.virtual.parameters()))

    @torch.no_grad()
    def displace(self, v, length):
        for w, d in zip(self.weights, v, strict=True):
            w += length * d

    def difference(self, v):
        "The mixed product by a central difference along v."
        length = 0.01 / torch.cat([d.reshape(-1) for d in v]).norm()
        self.displace(v, length)
        up = torch.autograd.grad(self.inner(self.net), self.lam)
        self.displace(v, -2 * length)
        down = torch.autograd.grad(self.inner(self.net), self.lam)
        self.displace(v, length)
        return [(a - b) / (2 * length) for a, b in zip(up, down, strict=True)]

    def step(self):
        for value, product in zip(self.lam, self.difference(self.look_ahead()), strict=True):
            value.grad = -RATE * product
        self.hypergradient = torch.stack(
            [value.grad for value in self.lam]
        )  # backward adds to .grad
        self.outer_sgd.step()
        self.sgd.zero_grad()
        self.inner(self.net).backward()
        self.sgd.step()


class DoubleBackward(Peer):
    "Reverse mode through the step; the training gradient serves the real step too."

    def step(self):
        gradient = torch.autograd.grad(self.inner(self.net), self.weights, create_graph=True)
        ahead = [w - RATE * g for w, g in zip(self.weights, gradient, strict=True)]
        hypergradient = torch.autograd.grad(self.outer(lambda x: self.apply(ahead, x)), self.lam)[0]
        with torch.no_grad():
            for w, new in zip(self.weights, ahead, strict=True):
                w.copy_(new)
        self.finish(hypergradient)


class Forward(Peer):
    "torch.func: forward mode in the weights; lambda's derivative is taken in the logits alone."

    def __init__(self, name, data):
        super().__init__(name, data)
        self.move = self.pure

    def load(self, weights, lam):
        self.weights, self.lam = tuple(weights), lam

    def set_up(self):
        pass

    def pure(self, weights, lam):
        "(next weights, next lam, hypergradient)."

        def forward(weights):
            return self.apply(weights, self.x)

        z, pull = torch.func.vjp(forward, weights)
        (gradient,) = pull(grad(distillation)(z, lam, self.y, self.teacher))
        ahead = tuple(w - RATE * g for w, g in zip(weights, gradient, strict=True))
        v = grad(lambda weights: self.outer(lambda x: self.apply(weights, x)))(ahead)
        dz = jvp(forward, (weights,), (v,))[1]

        def slope(lam):
            return (grad(distillation)(z, lam, self.y, self.teacher) * dz).sum()

        hypergradient = -RATE * grad(slope)(lam)
        return ahead, lam - OUTER_RATE * hypergradient, hypergradient

    def step(self):
        self.weights, self.lam, self.hypergradient = self.move(self.weights, self.lam)


class ForwardCompiled(Forward):
    "The same under torch.compile."

    def __init__(self, name, data):
        super().__init__(name, data)
        self.move = torch.compile(self.pure, dynamic=False)


class TorchOpt(Peer):
    "TorchOpt's MetaSGD: a differentiable step, whose result becomes the next weights."

    def __init__(self, name, data):
        import torchopt

        super().__init__(name, data)
        self.torchopt = torchopt

    def set_up(self):
        self.meta = self.torchopt.MetaSGD(self.net, lr=RATE)

    def load(self, weights, lam):
        self.net = NETS[
            self.name
        ]()  # the last one's parameters were replaced by tensors of a graph
        super().load(weights, lam)

    def step(self):
        self.meta.step(self.inner(self.net))
        self.finish(torch.autograd.grad(self.outer(self.net), self.lam)[0])
        self.torchopt.stop_gradient(self.net)
        self.torchopt.stop_gradient(self.meta)


class Higher(Peer):
    "higher's inner loop: a functional copy of the net, stepped and copied back."

    def __init__(self, name, data):
        import higher

        super().__init__(name, data)
        self.higher = higher

    def step(self):
        with self.higher.innerloop_ctx(self.net, self.sgd) as (net, sgd):
            sgd.step(self.inner(net))
            hypergradient = torch.autograd.grad(self.outer(net), self.lam)[0]
            with torch.no_grad():
                for w, new in zip(self.weights, net.parameters(), strict=True):
                    w.copy_(new)
        self.finish(hypergradient)


class Point(nn.Module):
    "The metaparameters as betty wants them."

    def __init__(self):
        super().__init__()
        self.lam = nn.Parameter(torch.tensor(LAM0))

    def forward(self):
        return self.lam


class Betty(Peer):
    "betty's engine with its finite difference, `darts`."

    def set_up(self):
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        class Student(ImplicitProblem):
            def training_step(self, batch):
                return distillation(self.module(batch[0]), self.outer(), *batch[1:])

        class Judge(ImplicitProblem):
            def training_step(self, batch):
                return F.cross_entropy(self.inner(batch[0]), batch[1])

        self.point, logs = Point(), Config(retain_graph=True)
        darts = Config(type="darts", darts_alpha=0.01, unroll_steps=1, retain_graph=True)
        inner_sgd, outer_sgd = (
            torch.optim.SGD(m.parameters(), lr=r)
            for m, r in ((self.net, RATE), (self.point, OUTER_RATE))
        )
        inner = Student(
            "inner", darts, self.net, inner_sgd, None, [(self.x, self.y, self.teacher)], "cpu"
        )
        outer = Judge("outer", logs, self.point, outer_sgd, None, [(self.val_x, self.val_y)], "cpu")
        links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
        self.engine = Engine([outer, inner], EngineConfig(train_iters=1, valid_step=10**9), links)

    def step(self):
        before = self.point.lam.detach().clone()
        self.engine.global_step += 1
        self.engine.train_step()
        self.hypergradient = (before - self.point.lam.detach()) / OUTER_RATE


class WholeAuthors(Authors):
    "The whole synthetic experiment, one restart after another, on a tenth of the steps."

    scale = 10

    def step(self):
        if self.name != "linear":
            raise ValueError("the whole experiment is on linear only")
        lam, weights = restarts()
        for restart in range(RESTARTS):
            self.load([tensor(w[restart]) for w in weights], torch.tensor(lam[restart]))
            self.set_up()
            for _ in range(STEPS // self.scale):
                super().step()


PEERS = {
    "plain": Plain,
    "authors": Authors,
    "double_backward": DoubleBackward,
    "forward": Forward,
    "forward_compiled": ForwardCompiled,
    "torchopt": TorchOpt,
    "higher": Higher,
    "betty": Betty,
    "whole_authors": WholeAuthors,
}
NOTES = {
    "authors": "central difference, 0.01 / |v|, and a second training gradient at the next lambda",
    "betty": "its value is not the hypergradient: no learning rate in it, taken at the next "
    "weights, which it leaves displaced",
    "whole_authors": f"{RESTARTS} restarts on linear, measured on {STEPS // 10} of {STEPS} steps "
    "and scaled by 10",
}


def missing():
    "{peer: why it cannot run here}."
    found = {
        name: "not installed"
        for name in ("torchopt", "higher", "betty")
        if not importlib.util.find_spec(name)
    }
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        found["forward_compiled"] = "torch.compile needs a C++ compiler"
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    skipped = missing()
    serve({name: peer for name, peer in PEERS.items() if name not in skipped}, skipped, NOTES)
