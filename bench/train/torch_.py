"""The training steps in PyTorch, eager and through torch.compile, as its users write them.

Optimisers are the fused ones; in the compiled form forward, loss and backward are compiled and the optimiser is called. The
LSTM is `torch.nn.LSTM` in eager mode; torch.compile does not trace into that module, and gets the loop over cells.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.train import data


class Contender:
    def __init__(self, case: str, which: str) -> None:
        import torch

        self.case, self.compiled = case, which == "torch.compile"
        if self.compiled:
            import torch._inductor.config

            torch._inductor.config.force_disable_caches = True
        x, y = data.batch(case)
        self.x, self.y = torch.from_numpy(x), None if y is None else torch.from_numpy(y)
        self.loss = {"mlp": self._mlp, "lstm": self._lstm, "resnet": self._resnet}[case]
        if self.compiled:
            self.loss = torch.compile(self.loss)
        self.module: Any = None
        self.reset()

    def reset(self) -> None:
        import torch

        p = {k: torch.from_numpy(a).requires_grad_() for k, a in data.weights(self.case).items()}
        if hasattr(self, "p"):  # the same tensors: guards of compiled code hold
            with torch.no_grad():
                for k, t in p.items():
                    self.p[k].copy_(t)
        else:
            self.p = p
        self.running = {k: torch.from_numpy(a) for k, a in data.statistics(self.case).items()}
        parameters = list(self.p.values())
        if self.case == "mlp":
            self.optimiser: Any = torch.optim.Adam(parameters, lr=data.LEARNING_RATE["mlp"], fused=True)
        elif self.case == "resnet":
            rate = data.LEARNING_RATE["resnet"]
            self.optimiser = torch.optim.SGD(parameters, lr=rate, momentum=data.MOMENTUM, fused=True)
        elif not self.compiled:
            self.module = torch.nn.LSTM(data.LSTM, data.LSTM)
            with torch.no_grad():
                for name, value in {
                    "weight_ih_l0": self.p["wx"].T, "weight_hh_l0": self.p["wh"].T, "bias_ih_l0": self.p["b"],
                    "bias_hh_l0": torch.zeros(4 * data.LSTM),
                }.items():  # fmt: skip
                    getattr(self.module, name).copy_(value)

    def _mlp(self, p: Any, running: Any, x: Any, y: Any) -> Any:
        import torch.nn.functional as F

        for i in range(3):
            x = F.linear(x, p[f"w{i}"].T, p[f"b{i}"])
            x = F.relu(x) if i < 2 else x
        return F.cross_entropy(x, y)

    def _lstm(self, p: Any, running: Any, x: Any, y: Any) -> Any:
        import torch

        if self.module is not None:
            return self.module(x)[0].sum()
        h = c = torch.zeros(x.shape[1], data.LSTM)
        outputs = []
        for t in range(x.shape[0]):
            i, f, g, o = (x[t] @ p["wx"] + h @ p["wh"] + p["b"]).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs).sum()

    def _resnet(self, p: Any, running: Any, x: Any, y: Any) -> Any:
        import torch.nn.functional as F

        def conv(name: str, x: Any, stride: int = 1) -> Any:
            z = F.conv2d(x, p[f"{name}.w"], stride=stride, padding=p[f"{name}.w"].shape[-1] // 2)
            return F.batch_norm(z, running[f"{name}.mean"], running[f"{name}.var"], p[f"{name}.scale"],
                                p[f"{name}.shift"], True, data.DECAY, data.EPS)  # fmt: skip

        h = F.relu(conv("stem", x))
        for name, _, _, stride in data.BLOCKS:
            inner = conv(f"{name}.b", F.relu(conv(f"{name}.a", h, stride)))
            h = F.relu(inner + (conv(f"{name}.skip", h, stride) if stride != 1 else h))
        return F.cross_entropy(h.mean((2, 3)) @ p["head.w"] + p["head.b"], y)

    def step(self) -> Any:
        for t in self.p.values() if self.module is None else self.module.parameters():
            t.grad = None
        loss = self.loss(self.p, self.running, self.x, self.y)
        loss.backward()
        if self.case != "lstm":
            self.optimiser.step()
        return loss

    def compile(self) -> float:
        """What the first step takes longer than the fastest of the next three."""
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return times[0] - min(times[1:])

    def probe(self) -> tuple[float, Any]:
        loss = float(self.step().detach())
        if self.module is not None:
            return loss, np.ascontiguousarray(self.module.weight_hh_l0.grad.numpy().T)
        return loss, self.p[data.PROBE[self.case]].grad.numpy().copy()

    def memory(self) -> int:
        """The most bytes that tensors made in a step hold at a time, gradients among them, by the profiler's record of
        allocations."""
        from torch.profiler import ProfilerActivity, profile

        self.step()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            self.step()
        found = []
        todo = list(p.profiler.kineto_results.experimental_event_tree())
        while todo:
            e = todo.pop()
            todo += e.children
            if "llocation" in str(e.tag):
                found.append((e.start_time_ns, e.extra_fields.alloc_size))
        held = most = 0
        # Gradients of the step before are freed first: they are held at the start.
        least = 0
        for _, size in sorted(found):
            held += size
            least = min(least, held)
            most = max(most, held)
        return int(most - min(least, 0))

    def describe(self) -> dict[str, Any]:
        import torch

        return {"version": torch.__version__, "threads": torch.get_num_threads()}
