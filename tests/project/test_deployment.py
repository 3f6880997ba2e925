"""The files of ``deploy/``: by linters and schemas, by each other, and by what a server does that they start.

No container is built and no cluster asked: neither is there where tests run.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from configparser import RawConfigParser
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from helpers.public_schemas import find_mistakes
from helpers.tiny_models import save_tiny
from helpers.tiny_server import LABELS, prompt, wait_for

from softprompt.models.loading import load_model
from softprompt.serving.http.api_keys import add_key
from softprompt.serving.http.server_settings import ServerSettings
from softprompt.store.version_store import Store
from softprompt.utils.version import VERSION

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
CLUSTER = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
POD = CLUSTER[1]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
SERVER = COMPOSE["services"]["server"]
ANSWERING = 5  # seconds beyond drain_delay and shutdown_timeout, before a process is killed


def read_unit() -> RawConfigParser:
    unit = RawConfigParser(strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "softprompt.service")
    return unit


def read_instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions of its last stage, each with what stands behind it."""
    lines = [line for line in (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    found = [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole) if name]
    last = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image_of(name: str) -> list[Any]:
    """The values of an instruction, as lists of JSON."""
    return [json.loads(rest[rest.index("[") :]) for one, rest in read_instructions() if one == name]


def image_environment() -> dict[str, str]:
    pairs = [pair for name, rest in read_instructions() if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


class Deployment(NamedTuple):
    """How a server is started and ended, and what is asked meanwhile."""

    command: list[str]
    environment: dict[str, str]
    live: str
    ready: str
    seconds: float


def by_compose() -> Deployment:
    command = [*image_of("ENTRYPOINT")[0], *image_of("CMD")[0]]
    seconds = float(SERVER["stop_grace_period"].removesuffix("s"))
    return Deployment(command, image_environment() | SERVER["environment"], "/healthz", "/readyz", seconds)


def by_kubernetes() -> Deployment:
    command = [*image_of("ENTRYPOINT")[0], *CONTAINER["args"]]
    environment = image_environment() | {one["name"]: one["value"] for one in CONTAINER["env"]}
    live, ready = (CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness"))
    return Deployment(command, environment, live, ready, POD["terminationGracePeriodSeconds"])


def by_systemd() -> Deployment:
    service = read_unit()["Service"]
    environment = dict(pair.split("=", 1) for pair in service["Environment"].split())
    command = shlex.split(service["ExecStart"])
    return Deployment(command, environment, "/healthz", "/readyz", float(service["TimeoutStopSec"]))


WAYS = {"compose": by_compose, "kubernetes": by_kubernetes, "systemd": by_systemd}


class TestFiles:
    def test_containerfile(self) -> None:
        linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if linter is None:
            pytest.skip("hadolint is not installed")
        done = subprocess.run([linter, DEPLOY / "Containerfile"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    def test_compose(self) -> None:
        address = "https://raw.githubusercontent.com/compose-spec/compose-spec/master/schema/compose-spec.json"
        assert find_mistakes(COMPOSE, address) == []

    @pytest.mark.parametrize("resource", CLUSTER, ids=lambda resource: resource["kind"])
    def test_kubernetes(self, resource: dict[str, Any]) -> None:
        validator = pytest.importorskip("kubernetes_validate")
        validator.validate(resource, "1.32", strict=True)

    def test_unit(self, tmp_path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd is not installed")
        text = (DEPLOY / "softprompt.service").read_text(encoding="utf-8")
        unit = tmp_path / "softprompt.service"
        unit.write_text(text.replace("/opt/softprompt/bin/softprompt", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        told = subprocess.run(["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True)
        assert float(re.findall(r"exposure level for \S+: ([\d.]+)", told.stdout)[0]) < 2.5

    def test_settings_file(self) -> None:
        ServerSettings.build(**tomllib.loads((DEPLOY / "serve.toml").read_text(encoding="utf-8"))).check()


class TestAgreement:
    @pytest.mark.parametrize("way", WAYS)
    def test_there_is_time_to_drain(self, way: str) -> None:
        found = WAYS[way]()
        values = {**tomllib.loads((DEPLOY / "serve.toml").read_text(encoding="utf-8"))} if way == "systemd" else {}
        values |= {name.removeprefix("SOFTPROMPT_").lower(): value for name, value in found.environment.items()}
        assert found.seconds >= float(values["drain_delay"]) + float(values["shutdown_timeout"]) + ANSWERING
        assert (found.live, found.ready) == ("/healthz", "/readyz")

    def test_settings_that_are_set_are_there(self) -> None:
        known = {f"SOFTPROMPT_{name.upper()}" for name in ServerSettings.model_fields}
        known |= {"SOFTPROMPT_CACHE", "SOFTPROMPT_REVISION"}
        for way in WAYS.values():
            assert {name for name in way().environment if name.startswith("SOFTPROMPT_")} <= known

    def test_nobody_is_root(self) -> None:
        users = [rest for name, rest in read_instructions() if name == "USER"]
        assert users == [str(POD["securityContext"]["runAsUser"])]
        assert POD["securityContext"]["runAsNonRoot"]
        assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
        assert SERVER["read_only"]

    def test_what_is_written_has_a_place(self) -> None:
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in CONTAINER["volumeMounts"]}
        assert {path for path, fixed in mounts.items() if not fixed} == {"/var/cache/softprompt", "/tmp"}
        environment = image_environment()
        assert environment["HF_HOME"].startswith(environment["SOFTPROMPT_CACHE"])
        assert environment["SOFTPROMPT_CACHE"] in mounts

    def test_versions(self) -> None:
        assert CONTAINER["image"] == f"softprompt:{VERSION}"
        labels = " ".join(rest for name, rest in read_instructions() if name == "LABEL")
        assert 'image.version="${VERSION}"' in labels
        assert 'image.revision="${REVISION}"' in labels


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_server_started_so_answers_drains_and_ends(way: str, tmp_path: Path) -> None:
    found, folder = WAYS[way](), save_tiny(tmp_path / "tiny", "llama")
    Store(tmp_path / "store").put(prompt(LABELS, 1, load_model(folder, dtype="float32")), "tone")
    token = add_key(tmp_path / "keys.json", "ci", ["tone"])
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    here = {"MODEL": folder, "STORE": tmp_path / "store", "KEYS": tmp_path / "keys.json", "PORT": port}
    here |= {"CACHE": tmp_path / "cache", "DRAIN_DELAY": 2, "DTYPE": "float32"}
    environment = {name: value for name, value in found.environment.items() if name != "PATH"}
    environment |= {f"SOFTPROMPT_{name}": str(value) for name, value in here.items()}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environment |= {"PYTHONPATH": str(DEPLOY.parent), "OMP_NUM_THREADS": "1"}
    program, *arguments = [str(DEPLOY / "serve.toml") if "serve.toml" in word else word for word in found.command]
    assert Path(program).name == "softprompt"
    process = subprocess.Popen(
        [sys.executable, "-m", "softprompt", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or status(f"{address}{found.ready}") == 200, 120)
        assert process.poll() is None, process.communicate()[1]
        assert status(f"{address}{found.live}") == 200
        (probe,) = image_of("HEALTHCHECK")
        assert subprocess.run([sys.executable, *probe[1:]], env=environment).returncode == 0
        headers = {"Authorization": f"Bearer {token}"}
        asked = {"model": "tone", "input": "a fine film"}
        assert httpx.post(f"{address}/v1/classify", json=asked).status_code == 401
        assert httpx.post(f"{address}/v1/classify", json=asked, headers=headers, timeout=60).status_code == 200

        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: status(f"{address}{found.ready}") == 503)
        assert status(f"{address}{found.live}") == 200
        assert httpx.post(f"{address}/v1/classify", json=asked, headers=headers, timeout=60).status_code == 200
        said = process.communicate(timeout=found.seconds)[1]
        assert process.returncode == 0, said
        assert 2 <= time.monotonic() - began < found.seconds
    finally:
        process.kill()


def status(address: str) -> int | None:
    """Of an answer, None without one."""
    try:
        return httpx.get(address).status_code
    except httpx.TransportError:
        return None
