"""`localavg.attach` on a GPU: a loop on digits with autocast and a gradient scaler, on 1 and 2 ranks
that share it.
"""

import io

import numpy as np
import pytest
from gpus import answered, guarded, launch, take

RANKS, T, B, STOP = (1, 2), 60, 32, 23  # a restart lies between two averages
ALGORITHMS = {
    "kavg": lambda localavg: localavg.kavg(K=4),
    "mavg": lambda localavg: localavg.mavg(K=4, mu=0.5),
    "sync": lambda localavg: localavg.sync(),
    "delay": lambda localavg: localavg.mavg(K=4, mu=0.5, delay=2),
    "adpsgd": lambda localavg: localavg.adpsgd(p_init=3, Ks=20, warmup_steps=5),
}
CASES = {name: (name, {}) for name in ALGORITHMS} | {
    "average": ("kavg", {"state": "average"}),
    "bf16": ("kavg", {"small": True}),
    "master": ("mavg", {"small": True, "master": True}),
}


class Loop:
    """A user's loop around a network that lies by channels_last."""

    def __init__(self, fleet, name, small=False, where=None, **how):
        import torch
        from sklearn.datasets import load_digits
        from torch import nn

        import localavg

        torch.manual_seed(0)
        self.fleet, self.where = fleet, where or f"cuda:{fleet.place % torch.cuda.device_count()}"
        x, y = load_digits(return_X_y=True)
        self.x = torch.tensor(x / 16 - 0.3, dtype=torch.float32).view(-1, 1, 8, 8).to(self.where)
        self.y = torch.tensor(y).to(self.where)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 2 * 2, 10),
        ).to(self.where, memory_format=torch.channels_last)  # fmt: skip
        if small:  # BatchNorm stays float32
            for layer in self.net:
                if not isinstance(layer, nn.BatchNorm2d):
                    layer.bfloat16()
        self.exchanges, self.losses = name == "sync", []
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9)
        self.scaler = torch.amp.GradScaler(self.x.device.type, 1024.0, enabled=not small)
        self.kind = torch.bfloat16 if small else torch.float16
        self.averager = localavg.attach(
            self.net, fleet, ALGORITHMS[name](localavg), self.optimizer, **how
        )

    @property
    def parts(self):
        return self.net, self.optimizer, self.scaler, self.averager

    def batch(self, t):
        rows = np.random.default_rng((t, self.fleet.rank)).integers(0, len(self.y), B)
        return self.x[rows], self.y[rows]

    def train(self, start, end):
        import torch
        from torch.nn.functional import cross_entropy

        for t in range(start + 1, end + 1):
            x, y = self.batch(t)
            self.optimizer.zero_grad()
            with torch.autocast(self.x.device.type, self.kind):
                loss = cross_entropy(self.net(x), y)
            self.scaler.scale(loss).backward()
            if self.exchanges:
                self.averager.exchange()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.averager.step(loss)
            self.losses.append(loss.detach())
        return self

    def places(self):
        return [x.data_ptr() for x in self.net.state_dict().values()]

    def end(self):
        """The losses and all numbers of the averaged model."""
        import torch

        self.averager.finish()
        numbers = [x.detach().float().flatten() for x in self.net.state_dict().values()]
        return torch.stack(self.losses).tolist(), torch.cat(numbers).cpu().numpy()


def loops(world, folder):
    import torch
    from gpus import place

    fleet, _ = place(world, world.size)

    def repeated(name, how):
        whole = Loop(fleet, name, **how)
        places = whole.places()
        ends = [whole.train(0, T).end(), Loop(fleet, name, **how).train(0, T).end()]
        first, file = Loop(fleet, name, **how).train(0, STOP), io.BytesIO()
        torch.save([x.state_dict() for x in first.parts], file)
        file.seek(0)
        second = Loop(fleet, name, **how)
        for x, state in zip(second.parts, torch.load(file), strict=True):
            x.load_state_dict(state)
        second.losses = first.losses
        ends.append(second.train(STOP, T).end())
        return ends, places == whole.places()

    def in_another_stream():
        loop, stream = Loop(fleet, "mavg"), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            return loop.train(0, T).end(), Loop(fleet, "mavg").train(0, T).end()

    def logged():
        from localavg.files.record import load

        path = f"{folder}/{world.size}.h5"
        losses, _ = Loop(fleet, "kavg", log=path).train(0, T).end()
        fleet.world.Barrier()
        found = load(path)
        return losses, found.train.loss.tolist(), found.status, found.config["device"]

    cases = {case: lambda of=of: repeated(*of) for case, of in CASES.items()}
    cases |= {"stream": in_another_stream, "log": logged, "graph": lambda: replayed(fleet)}
    return guarded(cases)


def replayed(fleet):
    """The ends of loops whose gradients the user's own graph computes, and eager ones'."""
    import torch
    from torch.nn.functional import cross_entropy

    ends = []
    for captured in (True, False):
        loop = Loop(fleet, "mavg")
        x, y = (part.clone() for part in loop.batch(0))

        def gradients(loop=loop, x=x, y=y):
            cross_entropy(loop.net(x), y).backward()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                loop.optimizer.zero_grad()
                gradients()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if captured:
            loop.optimizer.zero_grad()
            with torch.cuda.graph(graph):
                gradients()
        for t in range(1, T + 1):
            for to, part in zip((x, y), loop.batch(t), strict=True):
                to.copy_(part)
            if captured:
                graph.replay()
            else:
                loop.optimizer.zero_grad()
                gradients()
            loop.optimizer.step()
            loop.averager.step()
        loop.losses = [torch.zeros(())]
        ends.append(loop.end()[1])
    return ends


def begin_attached(folder):
    return {ranks: launch(ranks, loops, str(folder), timeout=150) for ranks in RANKS}


attached = answered("attached")
at_all = pytest.mark.parametrize("ranks", RANKS)


@at_all
@pytest.mark.parametrize("case", CASES)
def test_a_loop_learns_and_two_runs_and_a_restart_have_the_same_bits(case, ranks, attached):
    found = [take(answer, case) for answer in attached[ranks]]
    for ends, stay in found:
        (losses, w), *others = ends
        assert stay and np.isfinite(w).all()
        assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
        for other_losses, other in others:
            assert losses == other_losses and np.array_equal(w, other)
        assert np.array_equal(w[:-1], found[0][0][0][1][:-1])  # but for a counter


@at_all
def test_a_loop_in_another_stream_has_the_same_bits(ranks, attached):
    for answer in attached[ranks]:
        (_, w), (_, again) = take(answer, "stream")
        assert np.array_equal(w, again)
        assert np.array_equal(w, take(answer, "mavg")[0][0][1])


@at_all
def test_a_users_own_graph_trains_the_averaged_model(ranks, attached):
    for answer in attached[ranks]:
        captured, eager = take(answer, "graph")
        np.testing.assert_allclose(captured, eager, rtol=1e-2, atol=1e-3)


@at_all
def test_the_log_has_the_losses(ranks, attached):
    answers = [take(answer, "log") for answer in attached[ranks]]
    losses = np.mean([each[0] for each in answers], axis=0)
    _, logged, status, device = answers[0]
    assert (status, device) == ("finished", "cuda") and np.isfinite(logged).all()
    assert logged[0] == pytest.approx(losses[:4].mean(), rel=1e-4)
