"""bench/chat_step.py: its conversations, and its steps on a tiny model."""

import json
from pathlib import Path

import chat_step
import pytest
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
        folder = chat_step.write_conversations(facts, 3, tmp_path)
        chats = [json.loads(line)["messages"] for line in (folder / "train.jsonl").read_text().splitlines()]
        assert len(chats) == 3
        for chat in chats:
            assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 4]
            assert len({turn["content"] for turn in chat}) == 9

    def test_they_are_the_same_every_time(self, facts: Path, tmp_path: Path) -> None:
        texts = [(chat_step.write_conversations(facts, 3, tmp_path) / "train.jsonl").read_text() for _ in range(2)]
        assert texts[0] == texts[1]

    def test_other_rows_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"^expected JSON lines with text and target in '.*rows\.jsonl'"):
            chat_step.write_conversations(tmp_path / "rows.jsonl", 1, tmp_path)

    def test_too_few_rows_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "a", "target": "b"}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"^expected at least 4 rows in '.*rows\.jsonl', got 1"):
            chat_step.write_conversations(tmp_path / "rows.jsonl", 1, tmp_path)


@pytest.mark.slow
def test_all_make_steps_and_the_report_tells_them(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_chat_model("qwen2_5", tmp_path / "model")
    sizes = ("--rounds", 1, "--steps", 1, "--softprompt-steps", 2, "--conversations", 8, "--batch-size", 2)
    options = (*sizes, "--length", 4, "--threads", 1, "--model", folder, "--data", facts, "--json")
    assert chat_step.main([*map(str, options)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["steps"]["contestants"]) == {"softprompt", "trl-float32", "trl-bf16"}
    own, other = (report["steps"]["contestants"][name] for name in ("softprompt", "trl-float32"))
    assert (own["n_steps"], other["n_steps"], other["dtype"]) == (2, 1, "float32")
    # each of two conversations has its virtual tokens there, and all of the system turn
    assert 0 < own["mean_padded_tokens_per_step"] < other["mean_padded_tokens_per_step"]
    assert "aim" in chat_step.text_report(report)
