"""Where the server's settings come from: options over the environment (``SOFTPROMPT_PORT`` and so on) over a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from softprompt.config import read_settings_file
from softprompt.serving.http.server_settings import ServerSettings


class EnvironmentSource(EnvSettingsSource):
    """Lists have commas between their parts, the engine's settings are ``name=value`` each; blank is not given."""

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        kind, text = get_origin(field.annotation), (value or "").strip()
        if not text or kind not in (dict, tuple):
            return text or None
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return dict(part.partition("=")[::2] for part in parts) if kind is dict else tuple(parts)


class LayeredServerSettings(ServerSettings, BaseSettings):
    """Settings from all of their sources; ``config``: the file."""

    model_config = SettingsConfigDict(env_prefix="SOFTPROMPT_")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        file = init_settings.init_kwargs.pop("config", None)
        environment = EnvironmentSource(settings_cls)
        # pydantic-settings would mix objects of several sources
        known = environment().keys()
        values = {} if file is None else read_settings_file(file)
        left = {name: value for name, value in values.items() if name not in known}
        return init_settings, environment, InitSettingsSource(settings_cls, left)


def load_server_settings(file: Path | None, options: Mapping[str, Any]) -> ServerSettings:
    """Checked settings; ``None`` options are not given.

    Raises:
        ConfigError: one is unknown, of the wrong type, out of range, or does not go with another.
    """
    settings: ServerSettings = LayeredServerSettings.build(config=file, **options)
    for name, other in (("store", "prompts"), ("prompts", "store")):
        if options.get(name) and not options.get(other):
            # of the two there is one, whatever a file or the environment has of the other
            settings = settings.model_copy(update={other: ServerSettings.model_fields[other].get_default()})
    settings.check()
    return settings
