"""bench/vllm_prompts.py, as far as it goes without vLLM."""

from pathlib import Path

import pytest
import vllm_prompts


def test_without_vllm_it_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vllm_prompts.py", "--python", str(tmp_path / "python")])
    assert vllm_prompts.main() == 1
    assert "run make test-engines once, or give --python" in capsys.readouterr().err


def test_each_way_is_told_beside_the_connector() -> None:
    found = {
        "connector": {"answers": [[1, 2], [3, 4]]},
        "baked": {"answers": [[1, 2], [3, 4]]},
        "nothing": {"answers": [[1, 2], [5, 6]]},
    }
    same = vllm_prompts._count_same(found)
    assert same == {"connector": 2, "baked": 2, "nothing": 1}
    seconds = {way: {"labels": 2.0 + index} for index, way in enumerate(found)}
    facts = {"model": "tiny", "vllm": "0.32.0", "texts": 2, "virtual_tokens": 100}
    lines = vllm_prompts.text_report({**facts, "seconds": seconds, "same_answers": same}).splitlines()
    assert lines[0] == "tiny, vLLM 0.32.0, 2 texts, 100 tokens in front"
    assert lines[3].endswith("labels 4.00 s (2.00); 1 answers as the connector's")
