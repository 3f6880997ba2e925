"""bench/chat_step.py: its conversations, and its steps on a tiny model."""

import json
from pathlib import Path

import chat_step
import pytest
from contestants import Contestant
from helpers.chat_models import save_chat_model

from softprompt.errors import DataError


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that conversations are made of."""
    rows = [{"text": f"name[The Film {i}], area[city]", "target": f"The Film {i} is in the city."} for i in range(12)]
    path = tmp_path_factory.mktemp("facts") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestConversations:
    def test_turns_alternate_behind_the_system_message(self, facts: Path, tmp_path: Path) -> None:
        path = chat_step.write_conversations(facts, 3, tmp_path / "chats.jsonl")
        chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
        assert len(chats) == 3
        for chat in chats:
            assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 4]
            assert len({turn["content"] for turn in chat}) == 9

    def test_they_are_the_same_every_time(self, facts: Path, tmp_path: Path) -> None:
        texts = [chat_step.write_conversations(facts, 3, tmp_path / name).read_text() for name in ("a", "b")]
        assert texts[0] == texts[1]

    def test_other_rows_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"^expected JSON lines with text and target in '.*rows\.jsonl'"):
            chat_step.write_conversations(tmp_path / "rows.jsonl", 1, tmp_path / "chats.jsonl")


@pytest.mark.slow
def test_trl_makes_steps(facts: Path, tmp_path: Path) -> None:
    rows = chat_step.write_conversations(facts, 8, tmp_path / "chats.jsonl")
    folder = save_chat_model("qwen2_5", tmp_path / "model")
    setup = chat_step.Setup(str(folder), str(rows), batch_size=2, length=4, threads=1)
    one = Contestant("trl-float32", chat_step.work, setup, 3)
    one.turn(2)
    one.stop()
    assert len(one.measured.seconds) == 2
    assert min(one.measured.tokens) > 2 * 100
    assert one.facts == {"dtype": "float32", "threads": 1}
