"""Who asks, and what they may: API keys as bearer tokens."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request

from softprompt.errors import ConfigError
from softprompt.serving.http.api_keys import ApiKey, ApiKeyFile, read_keys
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.server_settings import host_name


class Authenticator:
    """The keys in use, or everybody's access where there are none."""

    def __init__(self, path: Path | None, *, open_admin: bool = False, origins: Collection[str] = ()) -> None:
        """Read the keys.

        Args:
            path: of the file of keys; ``None`` lets everybody ask.
            open_admin: without keys, everybody may reload and read the metrics too.
            origins: of the web, whose pages may ask; ``*`` for all.

        Raises:
            ConfigError: the file cannot be read, or holds no key: nobody could ask.
        """
        self._path, self._origins = path, origins
        self._keys = ApiKeyFile()
        self._everybody = ApiKey(
            name="everybody", sha256="0" * 64, admin=open_admin, created=datetime.fromtimestamp(0, UTC)
        )
        self.reload()
        if path is not None and not self._keys.keys:
            raise ConfigError(f"there is no API key in '{path}', nobody could ask: softprompt keys add makes one")

    @property
    def needs_key(self) -> bool:
        return self._path is not None

    def reload(self) -> None:
        """Read the file again; raises ConfigError, the keys staying as they were, if it cannot be read.

        A sound file without keys lets nobody in: the last one was taken away.
        """
        if self._path is not None:
            self._keys = read_keys(self._path)

    def authenticate(self, request: Request) -> None:
        """Put the key of whoever asks into the request's state.

        Raises:
            ApiError: 401, there is no key, or a wrong one; 403, a page of the web asks that has no business here.
        """
        if self._path is None and self._is_foreign(request):
            message = "a page of another origin asks, without an API key: name its origin in cors_origins"
            raise ApiError(403, "foreign_origin", message)
        request.state.key = self._everybody if self._path is None else self._find_key(request)
        request.state.outcome.key = request.state.key.name if self.needs_key else ""

    def _is_foreign(self, request: Request) -> bool:
        """Whether a page of another origin made its browser ask.

        It cannot read the answer, but what is asked would be done. Browsers tell, and a page cannot keep them from it;
        those that follow a link (navigate) ask for somebody who reads the answer himself.
        """
        headers = request.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._origins or "*" in self._origins:
            return False
        if site is not None:
            followed = request.method == "GET" and headers.get("sec-fetch-mode") == "navigate"
            return site not in ("same-origin", "none") and not followed
        if origin is None:
            return False
        own, asking = headers.get("host", ""), origin.partition("://")[2]
        # a proxy may leave out the port
        return asking.lower() != own.lower() and host_name(asking) != own.lower()

    def _find_key(self, request: Request) -> ApiKey:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = self._keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            got = "a wrong one" if token else "none"
            message = f"expected an API key, got {got}: send it as 'Authorization: Bearer sp-...'"
            raise ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        return key


def check_model_allowed(request: Request, name: str) -> None:
    """Raise ApiError (403) unless whoever asks may ask the prompt, or base model, ``name``."""
    if not request.state.key.allows(name):
        raise ApiError(403, "model_not_allowed", "this API key may not ask this model", param="model")


def check_admin(request: Request) -> None:
    """Raise ApiError (403) unless whoever asks is an admin."""
    if not request.state.key.admin:
        raise ApiError(403, "not_an_admin", "this needs an admin's API key")
