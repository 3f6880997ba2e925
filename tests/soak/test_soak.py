"""tests_soak/: what it holds to be right, that it notices what is not, and one short run."""

import asyncio
import json
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
import soak_checks
from helpers.tiny_models import tiny_base
from soak_client import Clients
from soak_world import Name, Timeline, World

from softprompt.data.task import TaskSpec

SOAK = Path(__file__).resolve().parents[2] / "tests_soak"


class TestTimeline:
    def test_both_values_are_possible_until_the_change_is_settled(self) -> None:
        line = Timeline()
        line.change(1, -inf)
        line.settle(-inf)
        line.change(2, 10.0)
        assert line.possible(3, 5) == {1}
        assert line.possible(9, 11) == line.possible(50, 51) == {1, 2}
        line.settle(12.0)
        assert line.possible(11, 13) == {1, 2}
        assert line.possible(12.5, 13) == {2}
        line.change(None, 20.0)
        line.settle(21.0)
        assert (line.possible(11, 30), line.possible(22, 30), line.now) == ({1, 2, None}, {None}, None)


class TestName:
    def test_references(self) -> None:
        one = Name(TaskSpec.of(), [2, 4, 5], [], 5)
        assert [one.leads_to(which) for which in ("", "prod", "latest", "4", "3")] == [5, None, 5, 4, None]
        one.promoted = [4, 2]
        assert [one.leads_to(which) for which in ("", "prod", "latest")] == [2, 2, 5]
        one.numbers.clear()
        assert {one.leads_to(which) for which in ("", "prod", "latest", "2")} == {None}


class TestWorld:
    def test_the_store_is_as_the_timelines_say(self, tmp_path: Path) -> None:
        world = World(tiny_base("llama"), tmp_path / "store", seed=3)

        async def changes() -> None:
            async def nothing() -> None:
                pass

            for _ in range(150):
                await world.change(nothing)

        asyncio.run(changes())
        assert set(world.changes) == {"put", "promote", "roll back", "remove", "add name", "remove name"}
        listed = {one.name: one for one in world.store.list()}
        assert set(listed) == {name for name, one in world.names.items() if one.numbers}
        for name, found in listed.items():
            assert list(found.numbers) == world.names[name].numbers
            assert found.aliases.get("prod") == world.timelines[f"{name}@prod"].now
        assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


class TestMemory:
    def test_a_slope_is_found_in_noise_and_spikes(self) -> None:
        samples = [(at, 500 + at / 1000 + at % 7 + (400 if at % 90 == 0 else 0)) for at in range(0, 20_000, 50)]
        assert soak_checks.memory(samples, 0.3).slope == pytest.approx(10, abs=0.5)

    def test_the_warm_up_does_not_count(self) -> None:
        samples = [(at, 100 + min(at, 300) / 3) for at in range(0, 1001, 10)]
        found = soak_checks.memory(samples, 0.3)
        assert (found.first, found.last, found.slope) == (200, 200, 0)

    def test_too_few(self) -> None:
        with pytest.raises(ValueError, match="2 samples behind the warm-up"):
            soak_checks.memory([(0, 1.0), (10, 1.0), (11, 1.0)], 0.5)


class TestClients:
    """A server that answers what it is told to."""

    def tally(self, tmp_path: Path, answer: Any, *ways: str) -> Any:
        base = tiny_base("llama")
        world = World(base, tmp_path / "store", seed=3)

        async def asked() -> Any:
            async with httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(answer)) as http:
                clients = Clients(http, world, soak_checks.Right(base), base, 0, 2e-4)
                for way in ways:
                    for _ in range(6):
                        await getattr(clients, way)()
                return clients.tally

        return asyncio.run(asked())

    def test_wrong_probabilities_and_versions(self, tmp_path: Path) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            model = json.loads(request.content)["model"]
            name = model.partition("@")[0]
            labels = ("bad", "good") if name == "name-0" else ("no", "yes", "none")
            result = {"label": labels[0], "probabilities": dict.fromkeys(labels, 1 / len(labels))}
            return httpx.Response(200, json={"model": f"{name}@{7 if '@' in model else 1}", "results": [result]})

        tally = self.tally(tmp_path, answer, "label")
        assert tally.faults == 6
        assert any("was answered by" in one for one in tally.wrong)
        assert any("'probabilities'" in one for one in tally.wrong)

    def test_wrong_completions_and_streams_without_an_end(self, tmp_path: Path) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content)
            _, _, which = body["model"].partition("@")
            number = {"": 1, "prod": 1, "latest": 2}.get(which) or int(which)
            said = {"model": f"name-2@{number}", "choices": [{"text": "wrong"}]}
            if body["stream"]:
                return httpx.Response(200, text=f"data: {json.dumps(said)}\n\n")
            return httpx.Response(200, json=said)

        tally = self.tally(tmp_path, answer, "whole_text", "streamed_text")
        assert tally.faults + tally.undecided == 12
        assert sum("got 'wrong'" in one for one in tally.wrong) == tally.checked > 0
        assert sum("a stream without an end" in one for one in tally.wrong) == 6

    @pytest.mark.parametrize("status", [404, 422, 500, 503])
    def test_other_statuses(self, status: int, tmp_path: Path) -> None:
        tally = self.tally(tmp_path, lambda _: httpx.Response(status, json={"error": {}}), "label", "streamed_chat")
        assert tally.faults == 12

    def test_a_full_queue_says_when_to_come_again(self, tmp_path: Path) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(429, json={"error": {}}, headers={"Retry-After": "1"})

        tally = self.tally(tmp_path, answer, "label")
        assert (tally.faults, tally.statuses[429]) == (0, 6)
        tally = self.tally(tmp_path / "other", lambda _: httpx.Response(429, json={"error": {}}), "label")
        assert tally.faults == 6


@pytest.mark.slow
def test_a_short_run() -> None:
    few = ("--requests", "400", "--clients", "16", "--every", "0.1", "--slope", "1e6", "--json")
    ran = subprocess.run([sys.executable, str(SOAK / "run.py"), *few], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["failed"] == report["wrong"] == []
    assert report["requests"] >= 400
    assert sum(report["asked"].values()) == report["requests"]
    assert set(report["statuses"]) <= {"200", "404", "429"}
    assert report["checked"] > 200
    assert sum(report["changes"].values()) > 5
