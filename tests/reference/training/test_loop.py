import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from accelerator.reference import ReferenceEngineError
from accelerator.reference.training.loop import Average, Checkpoint, Schedule, cosine, run
from accelerator.reference.training.pause import Pause
from accelerator.reference.training.plot import curves, plot

SCHEDULE = Schedule(steps=40, batch=4, seed=0)
NEVER = Pause(None)


class Line:
    """Fits a line; `at` may do something at a step."""

    def __init__(self, at=None) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        self.model, self.at = model, at or {}
        self.modules = {"model": model}
        self.optimizers = {"model": torch.optim.AdamW(model.parameters(), lr=0.05)}
        self.average = Average(model, 0.9)

    def step(self, step, random) -> dict[str, float]:
        if step in self.at:
            self.at[step]()
        x = torch.from_numpy(random.normal(size=(4, 3)).astype(np.float32))
        loss = (self.model(x + 0.01 * torch.randn(4, 3))[:, 0] - x.sum(1)).square().mean()
        self.optimizers["model"].zero_grad()
        loss.backward()
        self.optimizers["model"].step()
        self.average.update(self.model)
        return {"loss": loss.item()}

    def validate(self) -> dict[str, float]:
        return {"loss": 1.0}


def train(folder, task, **options):
    return run(task, folder, SCHEDULE, **{"pause": NEVER, "log_every": 5, "validate_every": 20, **options})


def test_going_on_gives_the_same_as_never_having_stopped(tmp_path):
    whole = Line()
    assert train(tmp_path / "whole", whole) == 40
    stopped = Line({17: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert train(tmp_path / "parts", stopped) == 18
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = Line()
    assert train(tmp_path / "parts", again) == 40
    assert again.model.weight.equal(whole.model.weight)
    assert again.average.values["weight"].equal(whole.average.values["weight"])
    ours, theirs = (curves(tmp_path / name / "losses.csv") for name in ("parts", "whole"))
    assert ours["valid_loss"] == theirs["valid_loss"] == [(20.0, 1.0), (40.0, 1.0)]
    assert [step for step, _ in ours["loss"]] == list(range(5, 45, 5))


def test_what_was_logged_behind_the_checkpoint_is_cut(tmp_path):
    folder = tmp_path / "codec"
    with pytest.raises(KeyError):
        train(folder, Line({30: lambda: {}["killed"]}), checkpoint_minutes=0)  # saves at each step
    with (folder / "losses.csv").open("a") as log:
        log.write("35,1.0,loss,7\n")
    train(folder, Line())
    assert [step for step, _ in curves(folder / "losses.csv")["loss"]] == list(range(5, 45, 5))
    picture = plot(tmp_path).read_text()
    assert picture.startswith("<svg")
    with pytest.raises(ReferenceEngineError, match="train first"):
        plot(tmp_path / "nowhere")


def test_another_schedule_is_refused(tmp_path):
    train(tmp_path, Line())
    assert Checkpoint(tmp_path / "checkpoint.pt").schedule() == SCHEDULE
    with pytest.raises(ReferenceEngineError, match="was made with"):
        run(Line(), tmp_path, Schedule(steps=41, batch=4, seed=0), pause=NEVER)


def test_a_run_that_has_begun_gets_another_length(tmp_path):
    train(tmp_path, Line(), minutes=0)
    longer = replace(SCHEDULE, steps=SCHEDULE.steps + 5)
    with pytest.raises(ReferenceEngineError, match="--reschedule"):
        run(Line(), tmp_path, longer, pause=NEVER)
    with pytest.raises(ReferenceEngineError, match="was made with"):  # nothing else may change
        run(Line(), tmp_path, replace(longer, batch=5), pause=NEVER, reschedule=True)
    assert run(Line(), tmp_path, longer, pause=NEVER, reschedule=True) == longer.steps
    assert Checkpoint(tmp_path / "checkpoint.pt").schedule() == longer


def test_time_is_up(tmp_path):
    assert train(tmp_path, Line(), minutes=0) == 1


def test_divergence_stops_before_it_is_saved(tmp_path):
    task = Line()
    task.at[10] = lambda: task.model.weight.data.fill_(torch.nan)
    with pytest.raises(ReferenceEngineError, match="diverged"):
        train(tmp_path, task)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_average_is_lent(tmp_path):
    task = Line()
    train(tmp_path, task)
    own = task.model.weight.detach().clone()
    with task.average.applied(task.model):
        assert task.model.weight.equal(task.average.values["weight"])
    assert task.model.weight.equal(own)


def test_cosine():
    rates = [cosine(step, 1000, peak=2.0, warmup=10) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == 2.0
    assert rates[-1] == pytest.approx(0.1, rel=1e-2)
