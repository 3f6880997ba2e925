"""``keys``: who may ask a server."""

from pathlib import Path

from softprompt.cli.printing import Line, print_result
from softprompt.serving.http.api_keys import add_key, read_keys, remove_key


def run_keys_add(name: str, path: Path, prompts: tuple[str, ...], admin: bool, as_json: bool) -> None:
    token = add_key(path, name, prompts, admin=admin)
    print_result({"name": name, "key": token, "prompts": list(prompts) or ["*"], "admin": admin}, [token], as_json)


def run_keys_list(path: Path, as_json: bool) -> None:
    found = [key.model_dump(mode="json", exclude={"sha256"}) for key in read_keys(path).keys]
    lines: list[Line] = [
        (key["name"], ",".join(key["prompts"]), "admin" if key["admin"] else "-", key["created"]) for key in found
    ]
    print_result({"keys": found}, lines or ["no keys"], as_json)


def run_keys_remove(name: str, path: Path, as_json: bool) -> None:
    remove_key(path, name)
    print_result({"removed": name}, [f"removed {name}"], as_json)
