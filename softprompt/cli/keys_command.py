"""``keys``: who may ask a server, how often, and until when."""

from datetime import datetime
from pathlib import Path
from typing import Any

from softprompt.cli.printing import Line, print_result
from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import (
    ApiKey,
    add_key,
    parse_expiry,
    parse_per_minute,
    read_keys,
    remove_key,
    update_key,
)
from softprompt.store.metadata import now

LIMITS = ("requests_per_minute", "tokens_per_minute")


def run_keys_add(
    name: str, path: Path, prompts: tuple[str, ...], admin: bool, as_json: bool, **given: str | None
) -> None:
    token = add_key(path, name, prompts, admin=admin, **_parse_terms(given))
    (key,) = [one for one in read_keys(path).keys if one.name == name]
    print_result({"key": token, **_describe_key(key, now())}, [token], as_json)


def run_keys_update(name: str, path: Path, prompts: tuple[str, ...], as_json: bool, **given: str | None) -> None:
    changes = {**({"prompts": prompts} if prompts else {}), **_parse_terms(given)}
    if not changes:
        raise ConfigError("expected something to change, as --expires 90d: softprompt keys update --help tells what")
    key = update_key(path, name, **changes)
    print_result(_describe_key(key, now()), [_make_line(key, now())], as_json)


def run_keys_list(path: Path, as_json: bool) -> None:
    keys, at = read_keys(path).keys, now()
    lines: list[Line] = [_make_line(key, at) for key in keys]
    print_result({"keys": [_describe_key(key, at) for key in keys]}, lines or ["no keys"], as_json)


def run_keys_remove(name: str, path: Path, as_json: bool) -> None:
    remove_key(path, name)
    print_result({"removed": name}, [f"removed {name}"], as_json)


def _parse_terms(given: dict[str, str | None]) -> dict[str, Any]:
    terms: dict[str, Any] = {
        name: parse_per_minute(text, name) for name in LIMITS if (text := given.get(name)) is not None
    }
    if (expires := given.get("expires")) is not None:
        terms["expires"] = parse_expiry(expires, now())
    return terms


def _describe_key(key: ApiKey, at: datetime) -> dict[str, Any]:
    return {**key.model_dump(mode="json", exclude={"sha256"}), "expired": key.is_expired(at)}


def _make_line(key: ApiKey, at: datetime) -> Line:
    """Name, prompts, whether it is an admin's, when it was made, until when it is good, and how often."""
    until = "never expires" if key.expires is None else f"expires {key.expires.isoformat().replace('+00:00', 'Z')}"
    limits = [f"{given} {name.partition('_')[0]}/min" for name in LIMITS if (given := getattr(key, name)) is not None]
    return (
        key.name,
        ",".join(key.prompts),
        "admin" if key.admin else "-",
        key.created.isoformat().replace("+00:00", "Z"),
        until.replace("expires", "expired") if key.is_expired(at) else until,
        ", ".join(limits) or "default limits",
    )
