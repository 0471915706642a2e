"""An engine and its peers: figures of workers that answer at once, and the worker with an arm that does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accelerator.benchmark import page, peer, peers, peers_teams, peers_worker
from accelerator.benchmark.peer import Peers
from accelerator.benchmark.peers import MEASURES, PeerOptions, run, to_markdown
from accelerator.benchmark.peers_arms import PEERS
from accelerator.benchmark.peers_worker import PeersWorker
from accelerator.benchmark.process import ArmFailed
from accelerator.cli import app
from accelerator.cli.measures import WITH_PEERS
from accelerator.errors import EngineError, InvalidOption

VOICE = Path("somewhere/voice.onnx")
SECONDS = {"as-shipped": 3.0, "sherpa-onnx": 2.0, "openvino": 4.0, "accelerator": 1.0}


class FakeProcess:
    """Each arm takes as long as SECONDS says, times the number of its question."""

    log: list[tuple[str, str]]
    missing: dict[str, str]
    alive = 0

    def __init__(self, _: Callable[[str], None]) -> None:
        type(self).alive += 1
        self._arm, self._asked = "", 0

    def ask(self, do: str, **given: Any) -> Any:
        if do == "open":
            self._arm = given["arm"]
            assert PeerOptions.from_dict(json.loads(json.dumps(given["options"]))).checkpoint == VOICE
            if reason := self.missing.get(self._arm):
                raise ArmFailed(reason)
            return {"about": f"this is {self._arm}"}
        if do == "memory":
            return {"peak_memory": 1 << 30}
        self.log.append((self._arm, given["measure"]))
        self._asked += 1
        return SECONDS[self._arm] * self._asked

    def close(self) -> None:
        type(self).alive -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    class Fake(FakeProcess):
        log: list[tuple[str, str]] = []  # noqa: RUF012 - of this test alone
        missing: dict[str, str] = {}  # noqa: RUF012

    monkeypatch.setattr(peers_teams, "_SETTLE_S", 0)
    return Fake


def measured(fake: Any, **options: Any) -> dict[str, Any]:
    given = PeerOptions(**{"engine": "piper", "checkpoint": VOICE, "rounds": 2, **options})
    return run(given, lambda line: None, start=fake)


def test_arms_take_turns_within_a_measure_and_ratios_are_of_one_round(fake: type[FakeProcess]) -> None:
    result = measured(fake)
    arms, measures = list(SECONDS), list(PeerOptions(engine="piper", checkpoint=VOICE).measures)
    assert measures == ["sentence", "text", "first", "first-raw"]
    rehearsal = [(arm, measure) for arm in arms for measure in measures]
    a_round = [(arm, measure) for measure in measures for arm in arms]
    assert fake.log == rehearsal + 2 * a_round
    assert fake.alive == 0
    assert result["figures"]["sentence"]["sherpa-onnx"]["values"] == [2.0 * 5, 2.0 * 9]
    assert result["figures"]["sentence"]["sherpa-onnx"]["median"] == 14.0
    assert result["ratios"]["first"]["sherpa-onnx"]["accelerator"]["values"] == [2.0, 2.0]
    assert set(result["ratios"]["text"]) == {"as-shipped", "sherpa-onnx", "openvino"}
    assert result["engine"] == {"name": "piper", "checkpoint": "voice.onnx"}
    assert "somewhere" not in json.dumps(result), "where a voice lies is nobody's business"


def test_the_table(fake: type[FakeProcess]) -> None:
    table = to_markdown(measured(fake, rounds=1))
    assert "# piper and its peers, voice.onnx" in table
    assert "| real-time factor, 12 words | 15.0 | 10.0 | 20.0 | 5.00 |" in table
    assert "| first audio of these | 21.0 s | 14.0 s | 28.0 s | 7.00 s |" in table
    assert "| real-time factor, 12 words: times less than `openvino` | – | – | – | 4.00 |" in table
    assert "| peak memory | 1.00 GiB |" in table
    assert "- `openvino`: this is openvino" in table


def test_it_has_a_place_on_the_page(fake: type[FakeProcess], tmp_path: Path) -> None:
    result = {"command": "accelerator bench peers", **measured(fake)}
    folder = tmp_path / f"{result['began'][:10]}-cpu"
    folder.mkdir()
    (folder / "piper.json").write_text(json.dumps(result))
    assert "### piper and its peers, voice.onnx" in page.tables(tmp_path)


def test_a_peer_that_is_not_there_is_left_out(fake: type[FakeProcess]) -> None:
    fake.missing["sherpa-onnx"] = "pip install sherpa-onnx"
    result = measured(fake)
    assert result["arms"]["sherpa-onnx"]["error"] == "pip install sherpa-onnx"
    assert result["figures"]["sentence"]["sherpa-onnx"] is None
    assert "sherpa-onnx" not in result["ratios"]["sentence"]
    assert "- `sherpa-onnx`: pip install sherpa-onnx" in to_markdown(result)


def test_without_ours_there_is_nothing_to_compare(fake: type[FakeProcess]) -> None:
    fake.missing["accelerator"] = "no such file"
    with pytest.raises(EngineError, match="accelerator cannot be measured: no such file"):
        measured(fake)
    assert fake.alive == 0


def test_options_and_what_follows_from_them() -> None:
    assert PeerOptions(engine="piper", checkpoint=VOICE, precisions=("int8", "fp32")).arms[-2:] == (
        "accelerator-int8",
        "accelerator-fp32",
    )
    assert PeerOptions(engine="kokoro", checkpoint=VOICE).measures == ("sentence", "text", "first")
    given = PeerOptions(engine="piper", checkpoint=VOICE, cache_dir=Path("cache"), threads=2, precisions=("int8",))
    assert PeerOptions.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    with pytest.raises(InvalidOption, match="piper is measured with a trained voice: give its checkpoint"):
        PeerOptions(engine="piper")
    unnamed = PeerOptions(engine="kitten")
    assert (unnamed.arms, unnamed.checkpoint) == (("as-shipped", "pool", "accelerator"), None)
    assert PeerOptions.from_dict(json.loads(json.dumps(unnamed.to_dict()))) == unnamed
    with pytest.raises(InvalidOption, match="there are piper, kokoro, kitten, spark-tts"):
        PeerOptions(engine="vits", checkpoint=VOICE)
    with pytest.raises(InvalidOption, match="rounds must be at least 1"):
        PeerOptions(engine="piper", checkpoint=VOICE, rounds=0)
    with pytest.raises(InvalidOption, match="frames are not for piper"):
        PeerOptions(engine="piper", checkpoint=VOICE, frames=9)
    cloning = PeerOptions(engine="spark-tts", checkpoint=VOICE, precisions=("int4",), frames=300, proof="warn")
    assert cloning.measures == ("start", "known", "known-first", "voice", "voice-said")
    assert cloning.arms == ("as-shipped", "as-shipped-bf16", "accelerator-int4")
    assert PeerOptions.from_dict(json.loads(json.dumps(cloning.to_dict()))) == cloning
    with pytest.raises(InvalidOption, match="spark-tts knows no voices by name"):
        PeerOptions(engine="spark-tts", checkpoint=VOICE, voice="anna")


def test_random_weights_are_made_where_there_are_no_others_and_named_so(
    fake: type[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    class Opened(fake):  # type: ignore[valid-type, misc]
        def ask(self, do: str, **asked: Any) -> Any:
            if do == "open":
                given.append(Path(asked["options"]["checkpoint"]))
                assert (given[-1] / "made").is_file()
                return {"about": "as before"}
            return {"peak_memory": 1} if do == "memory" else 1.0

    made = Peers({"as-shipped": SlowArm}, random=lambda folder: (folder / "made").touch())  # type: ignore[dict-item]
    monkeypatch.setitem(PEERS, "kitten", made)  # type: ignore[arg-type]
    said: list[str] = []
    result = run(PeerOptions(engine="kitten", rounds=1), said.append, start=Opened)
    assert len(set(given)) == 1
    assert not given[0].exists()
    assert result["engine"] == {"name": "kitten", "checkpoint": "random weights"}
    assert "# kitten and its peers, random weights" in to_markdown(result)
    assert any("random weights" in line for line in said)


def test_the_texts_are_what_their_rows_say() -> None:
    assert len(MEASURES["sentence"].text.split()) == 12
    assert sum(MEASURES["text"].text.count(mark) for mark in ".?!") == 5


class SlowArm:
    about, sample_rate = "slow", 1000

    def __init__(self, clock: list[float]) -> None:
        self._clock, self.asked = clock, list[Any]()

    def whole(self, text: str) -> np.ndarray:
        self._clock[0] += 3.0
        return np.zeros(6000, np.float32)

    def stream(self, text: str, *, raw: bool) -> Iterator[np.ndarray]:
        self.asked.append(raw)
        for samples in (0, 10, 10):
            self._clock[0] += 1.0
            yield np.zeros(samples, np.float32)


def test_the_worker_measures_a_factor_and_the_first_chunk_with_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    arm = SlowArm(clock)
    monkeypatch.setattr(peers_worker, "open_arm", lambda *given, **more: arm)
    monkeypatch.setattr(peers_worker.time, "perf_counter", lambda: clock[0])
    worker = PeersWorker(print)
    given = PeerOptions(engine="piper", checkpoint=VOICE).to_dict()
    assert worker.open(given, "as-shipped", "x", ready=True) == {"about": "slow"}
    assert worker.take("sentence") == 0.5
    assert worker.take("first") == 2.0
    assert worker.take("first-raw") == 2.0
    assert arm.asked == [False, True]
    assert clock == [9.0], "streams are spoken to their end"


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[PeerOptions] = []
    monkeypatch.setattr(peers, "run", lambda options, report: given.append(options) or {"rows": []})
    monkeypatch.setattr(peers, "to_markdown", lambda result: "| table |\n")
    voice = tmp_path / "voice.onnx"
    voice.touch()
    options = ["--checkpoint", str(voice), "--rounds", "3", "--precision", "int8"]
    for args in (["peers", *options], ["--engine", "piper", *options], ["--engine=piper", *options]):
        done = CliRunner().invoke(app, ["bench", *args])
        assert done.exit_code == 0, done.output
    assert given == [PeerOptions(engine="piper", checkpoint=voice, rounds=3, precisions=("int8",))] * 3
    refused = CliRunner().invoke(app, ["bench", "engine", "--engine", "piper", *options])
    assert refused.exit_code == 2
    assert "piper is measured by `bench peers`" in " ".join(refused.output.split())
    assert tuple(PEERS) == WITH_PEERS
    assert CliRunner().invoke(app, ["bench", "peers"]).exit_code == 2, "Piper needs a voice"
    given.clear()
    assert CliRunner().invoke(app, ["bench", "--engine", "kitten", "--rounds", "1"]).exit_code == 0
    assert given == [PeerOptions(engine="kitten", rounds=1)]


class CloningProcess:
    """Each arm takes as long as its name is, and has as many bytes as it was asked questions."""

    alive, log = 0, list[tuple[Any, ...]]()
    missing: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, _: Callable[[str], None]) -> None:
        type(self).alive += 1
        assert type(self).alive == 1, "one at a time is in memory"
        self.started, self._asked = peers_teams.time.perf_counter(), 0

    def ask(self, do: str, **given: Any) -> Any:
        self._asked += 1
        if do == "open":
            self._arm = given["arm"]
            if reason := self.missing.get(self._arm):
                raise ArmFailed(reason)
            self.log.append((self._arm, "ready" if given["ready"] else "new"))
            return {}
        if do == "streams":
            return not self._arm.startswith("as-shipped")
        if do == "about":
            return f"this is {self._arm}"
        if do == "memory":
            return {"peak_memory": self._asked << 20}
        self.log.append((self._arm, given["measure"]))
        return float(len(self._arm))

    def close(self) -> None:
        type(self).alive -= 1


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> type[CloningProcess]:
    class Fake(CloningProcess):
        log: list[tuple[Any, ...]] = []  # noqa: RUF012
        missing: dict[str, str] = {}  # noqa: RUF012

    monkeypatch.setattr(peers_teams, "_SETTLE_S", 0)
    return Fake


def cloned(fake: Any, **options: Any) -> dict[str, Any]:
    given = {"engine": "spark-tts", "checkpoint": VOICE, "precisions": ("int4",), "rounds": 2, **options}
    return run(PeerOptions(**given), lambda line: None, start=fake)


def test_large_engines_take_all_measures_in_a_process_of_each_round(cloning: type[CloningProcess]) -> None:
    result = cloned(cloning)
    voices = ["voice", "voice", "voice-said", "voice-said"]
    shipped, ours = ["new", "start", "known", *voices], ["new", "start", "known", "known-first", *voices]
    a_round = [
        *(("as-shipped", each) for each in shipped),
        *(("as-shipped-bf16", each) for each in shipped),
        *(("accelerator-int4", each) for each in ours),
    ]
    assert cloning.log == [("accelerator-int4", "ready"), *a_round, *a_round]
    assert cloning.alive == 0
    figures, ratios = result["figures"], result["ratios"]
    assert figures["known"]["as-shipped"]["values"] == [10.0, 10.0]
    assert figures["start"]["as-shipped"]["median"] > 10.0, "the start counts"
    assert figures["known-first"]["as-shipped"] is None, "it has no streams"
    assert ratios["voice"]["as-shipped"]["accelerator-int4"]["values"] == [10 / 16] * 2
    assert result["memory_known"]["as-shipped"]["values"] == [3 << 20] * 2
    assert result["memory"]["accelerator-int4"]["values"] == [11 << 20] * 2
    table = to_markdown(result)
    assert "| a new voice of 10 s | 10.0 s (10.0–10.0 s) |" in table
    assert "| peak memory of one text, a known voice | 3.00 MiB |" in table
    assert "- `as-shipped`: this is as-shipped" in table


def test_of_large_engines_too_an_arm_may_be_missing_but_not_ours(cloning: type[CloningProcess]) -> None:
    cloning.missing["as-shipped-bf16"] = "no bfloat16"
    result = cloned(cloning)
    assert result["arms"]["as-shipped-bf16"]["error"] == "no bfloat16"
    assert result["figures"]["voice"]["as-shipped-bf16"] is None
    cloning.missing["accelerator-int4"] = "no such file"
    with pytest.raises(EngineError, match="accelerator-int4 cannot be measured: no such file"):
        cloned(cloning)
    assert cloning.alive == 0


def test_the_worker_of_an_engine_that_clones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[Path] = []

    class Arm(SlowArm):
        streams = False

        def encode(self, path: Path, said: str) -> None:
            self._clock[0] += 5.0
            heard.append(path)

    clock = [0.0]
    arm = Arm(clock)
    monkeypatch.setattr(peers_worker, "open_arm", lambda *given: arm)
    monkeypatch.setattr(peers_worker.time, "perf_counter", lambda: clock[0])
    worker, options = PeersWorker(print), PeerOptions(engine="spark-tts", checkpoint=VOICE).to_dict()
    assert worker.open(options, "as-shipped", str(tmp_path), ready=False) == {}
    assert clock == [0.0], "nothing is made before it is asked for"
    assert (worker.about(), worker.streams()) == ("slow", False)
    assert [worker.take("voice"), worker.take("voice")] == [5.0, 5.0]
    assert worker.take("start") == 2.0
    assert len({path.read_bytes() for path in heard}) == 2, "each is a new voice"
    assert peer.recording(tmp_path).read_bytes() not in {path.read_bytes() for path in heard}
    assert worker.open(options, "as-shipped", str(tmp_path), ready=True) == {"about": "slow"}
    assert arm.asked[-1] is False
