"""References to prompts in a store: one syntax, and names that cannot be anything else."""

from pathlib import Path

import pytest

from softprompt.errors import StoreError
from softprompt.store.references import ENVIRONMENT, Reference, check_alias, check_name, is_reference, split_store

HOSTILE = [
    "",
    ".",
    "..",
    "../etc",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "A",
    ".hidden",
    "-option",
    "a.",
    "a\n",
    "a\x00b",
    "a b",
    "ä",
    "\u0430bc",  # Cyrillic
    "a" * 65,
    "a%2fb",
    "$HOME",
    "~",
    "con:",
    "a#b",
]


class TestReference:
    def test_all_of_it(self) -> None:
        reference = Reference.parse("s3://bucket/prompts#sentiment@12")
        assert reference == Reference("s3://bucket/prompts", "sentiment", "12")
        assert reference.number == 12
        assert str(reference) == "s3://bucket/prompts#sentiment@12"

    def test_an_alias_has_no_number(self) -> None:
        assert Reference.parse("prompts/store#a.b-c_1@prod").number is None

    def test_the_store_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENVIRONMENT, "/prompts")
        assert Reference.parse("sentiment@prod").store == "/prompts"
        assert Reference.parse("other#sentiment@prod").store == "other"
        assert split_store("sentiment") == ("/prompts", "sentiment")

    @pytest.mark.parametrize("value", [None, "", " "])
    def test_no_store(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        monkeypatch.delenv(ENVIRONMENT, raising=False)
        if value is not None:
            monkeypatch.setenv(ENVIRONMENT, value)
        with pytest.raises(StoreError, match=r"expected STORE#a@1, as in prompts/store#a@1, or .*STORE, got"):
            Reference.parse("a@1")

    def test_the_last_hash_ends_the_store(self) -> None:
        assert Reference.parse("/odd#folder#a@1") == Reference("/odd#folder", "a", "1")

    @pytest.mark.parametrize("place", ["a@1", "store#a@prod", "s3://b/c#a@latest", "store#../x@1".replace("../", "..")])
    def test_is_one(self, place: str) -> None:
        assert is_reference(place)

    @pytest.mark.parametrize(
        "place", ["folder", "./a@1", "x/a@1", "store#a", "store#../a@1", "hf:somebody/a@1", Path("a@1"), "s3://b@c/d"]
    )
    def test_is_a_folder(self, place: object) -> None:
        assert not is_reference(place)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names_are_refused(self, name: str) -> None:
        with pytest.raises(StoreError, match="expected the name of a prompt, lower-case letters"):
            check_name(name)
        with pytest.raises(StoreError, match="expected an alias: lower-case letters"):
            check_alias(name)
        if "#" not in name:
            for text in (f"s#{name}@1", f"s#a@{name}"):
                with pytest.raises(StoreError, match="expected "):
                    Reference.parse(text)

    @pytest.mark.parametrize("name", ["a", "7", "a1", "a-b_c.d", "a" * 64])
    def test_other_names_are_taken(self, name: str) -> None:
        check_name(name)

    @pytest.mark.parametrize("which", ["0", "01", "1e3", "-1", "1.0", "9999999999", "+1", "\u0661"])
    def test_odd_numbers_are_no_versions(self, which: str) -> None:
        with pytest.raises(StoreError, match=r"expected a version \(1, 2, ...\) or an alias"):
            Reference.parse(f"s#a@{which}")

    def test_latest_does_not_move(self) -> None:
        assert Reference.parse("s#a@latest").which == "latest"
        with pytest.raises(StoreError, match="'latest' is always the newest version and cannot be moved"):
            check_alias("latest")

    def test_a_long_name_is_not_repeated_whole(self) -> None:
        with pytest.raises(StoreError) as caught:
            check_name("a" * 10_000)
        assert len(str(caught.value)) < 300
