"""Push to and pull from the Hugging Face Hub: its real client, against a server here that answers as the Hub does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fake_hub import FakeHub
from helpers.saved_prompts import a_prompt
from helpers.small_tasks import command

from softprompt.errors import PromptFileError, StoreError
from softprompt.store import hub
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.version_store import Store, read_saved_files


def test_round_trip(fake_hub: FakeHub, tmp_path: Path) -> None:
    files = a_prompt().files()
    commit = hub.push(files, "hf:ada/reviews")
    assert fake_hub.visibility == {"ada/reviews": "private"}
    assert str(commit) == f"hf:ada/reviews@{0:040d}"
    found, back = hub.pull("hf:ada/reviews")
    assert found == commit
    assert {name: back[name] for name in files} == files
    assert set(back) - set(files) == {"README.md"}
    # a local folder of the Hub's layout is a saved prompt, and can be pushed again with its card
    for name, content in back.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_bytes(content)
    assert load_prompt(tmp_path / "p").seed == 0
    hub.push(read_saved_files(tmp_path / "p"), "hf:ada/copy", public=True)
    assert fake_hub.visibility["ada/copy"] == "public"
    assert fake_hub.at("ada/copy", "main") == fake_hub.at("ada/reviews", "main")


def test_every_push_is_one_commit_and_stays(fake_hub: FakeHub) -> None:
    for seed in (1, 2):
        hub.push(a_prompt(seed).files(), "hf:ada/reviews")
    assert len(fake_hub.commits["ada/reviews"]) == 2
    for revision, seed in (("0" * 40, 1), ("main", 2)):
        files = hub.pull(f"hf:ada/reviews@{revision}")[1]
        assert json.loads(files["prompt.json"])["seed"] == seed


def test_a_card_is_written_once(fake_hub: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    make_card = fake_hub.commits["ada/reviews"][0]["README.md"].decode()
    assert make_card.startswith("---\n")
    assert "library_name: softprompt" in make_card
    assert "$ softprompt pull hf:ada/reviews --out prompt" in make_card
    # "tiny" is no name on the Hub
    assert "base_model" not in make_card
    fake_hub.commits["ada/reviews"][0]["README.md"] = b"my own words"
    hub.push(a_prompt(1).files(), "hf:ada/reviews")
    assert fake_hub.commits["ada/reviews"][1]["README.md"] == b"my own words"


def test_the_card_names_a_base_model_of_the_hub() -> None:
    prompt = replace(a_prompt(), base_name="google/gemma-3-270m")
    assert "base_model: google/gemma-3-270m" in hub.make_card(prompt, "ada/reviews")


def test_only_what_a_saved_prompt_has_is_pulled(fake_hub: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake_hub.commits["ada/reviews"][0] |= {"code/evil.py": b"1", "../evil": b"1", ".hidden": b"1", "a b": b"1"}
    names = set(hub.pull("hf:ada/reviews")[1])
    assert names == {"README.md", "history.jsonl", "prompt.json", "prompt.safetensors"}


def test_too_much_is_not_pulled(fake_hub: FakeHub) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake_hub.claimed_sizes["prompt.safetensors"] = 2**40
    with pytest.raises(StoreError, match=r"holds 4 files of 1,099,[0-9,]+ bytes, a saved prompt has at most 64 of"):
        hub.pull("hf:ada/reviews")


def test_a_damaged_prompt_is_neither_pushed_nor_pulled(fake_hub: FakeHub) -> None:
    damaged = {**a_prompt().files(), "prompt.safetensors": b"x"}
    with pytest.raises(PromptFileError, match="its SHA-256 is not the one in"):
        hub.push(damaged, "hf:ada/reviews")
    assert fake_hub.commits == {}
    hub.push(a_prompt().files(), "hf:ada/reviews")
    fake_hub.commits["ada/reviews"][0]["prompt.safetensors"] = b"x"
    with pytest.raises(PromptFileError, match=r"'hf:ada/reviews/prompt.safetensors' is damaged"):
        hub.pull("hf:ada/reviews")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("hf:ada/none", "'hf:ada/none' on the Hugging Face Hub: .*; correct the name, log in"),
        ("hf:ada/reviews@nowhere", "on the Hugging Face Hub: "),
        ("hf:reviews", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, got 'hf:reviews'"),
        ("hf:../../etc/passwd", "expected hf:OWNER/NAME"),
        ("hf:ada/..", "on the Hugging Face Hub: "),
    ],
)
def test_what_is_not_there(fake_hub: FakeHub, place: str, words: str) -> None:
    hub.push(a_prompt().files(), "hf:ada/reviews")
    with pytest.raises(StoreError, match=words) as caught:
        hub.pull(place)
    assert "\n" not in str(caught.value)


def test_a_revision_is_not_pushed_to(fake_hub: FakeHub) -> None:
    with pytest.raises(StoreError, match="to push to, got 'hf:ada/x@main': leave '@main' out"):
        hub.push(a_prompt().files(), "hf:ada/x@main")


def test_on_the_command_line(fake_hub: FakeHub, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put(a_prompt(), "p")
    pushed = command("push", f"{store.url}#p@1", "hf:ada/reviews", "--json")
    assert (pushed.code, json.loads(pushed.out)["repository"]) == (0, "ada/reviews"), pushed.err
    pulled = command("pull", "hf:ada/reviews", "--out", tmp_path / "out")
    assert pulled.out == f"hf:ada/reviews@{0:040d} written to {tmp_path / 'out'}\n"
    assert load_prompt(tmp_path / "out").seed == 0
    refused = command("push", tmp_path / "out", f"{store.url}#p", "--public")
    assert refused.code == 2
    assert refused.error == "--public is for hf:OWNER/NAME: leave it out"
