"""Clients that people use, against a running softprompt server with a real instruct model.

``python tests_clients/run.py [--base FOLDER] [--prompt FOLDER] [--bare] [-- PYTEST OPTIONS]``

They ask a prompt that is learned here in a few steps, with a system prompt kept beside its virtual tokens, or the one
that is named; with ``--bare`` the base model that it is served with.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

from real_models import qwen_folder, say  # noqa: E402
from served import served  # noqa: E402

from softprompt.models.gguf_conversion import cache_folder  # noqa: E402

PROMPT, BARE = "assistant", "bare"  # what the clients ask
SYSTEM = "You are a helpful assistant."
STEPS = 6
CLIENTS = Path(os.environ.get("SOFTPROMPT_CLIENTS") or cache_folder() / "clients")


def main() -> int:
    options = _options()
    python, sdk = python_clients(CLIENTS), javascript_client(CLIENTS)
    base = options.base or str(qwen_folder())
    with tempfile.TemporaryDirectory() as folder:
        prompt = options.prompt or learned(base, Path(folder) / PROMPT)
        serving = ["--model", base, "--base-name", BARE, f"--prompt={PROMPT}={prompt}", "--compile", "never"]
        with served(serving, Path(folder) / "server.log", {}) as (address, _):
            variables = {
                "SOFTPROMPT_URL": f"{address}/v1",
                "SOFTPROMPT_MODEL": BARE if options.bare else PROMPT,
                "SOFTPROMPT_TOKENIZER": base,
                "SOFTPROMPT_AI_SDK": str(sdk or ""),
            }
            inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            command = [str(python), "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(HERE), *options.pytest]
            return subprocess.run(command, env=inherited | variables, cwd=HERE).returncode


def learned(base: str, place: Path) -> Path:
    """A prompt for conversations, which has taken a few steps from where it starts."""
    say(f"learning a prompt, {STEPS} steps")
    sizes = ["--length", "16", "--steps", str(STEPS), "--batch-size", "4", "--no-baseline"]
    command = [sys.executable, "-m", "softprompt", "train", "--model", base, "--data", str(HERE / "assistant.jsonl")]
    subprocess.run([*command, *sizes, "--system", SYSTEM, "--out", str(place)], check=True, stdout=subprocess.DEVNULL)
    return place


def python_clients(folder: Path) -> Path:
    """The Python of a virtual environment that has the clients; made when requirements.txt is another than before."""
    wanted = HERE / "requirements.txt"
    place = folder / f"python-{_digest(wanted)}"
    python = place / "bin" / "python"
    if not (place / "done").is_file():
        say(f"installing the clients into {place}: some minutes, once")
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(wanted)]
        subprocess.run([python, *install], check=True)
        (place / "done").touch()
    return python


def javascript_client(folder: Path) -> Path | None:
    """The folder of the AI SDK's client with its packages; None where there is no npm."""
    if shutil.which("npm") is None:
        say("expected node and npm for the AI SDK, found none: its tests are skipped")
        return None
    place = folder / f"ai-sdk-{_digest(*sorted((HERE / 'ai_sdk').iterdir()))}"
    if not (place / "node_modules").is_dir():
        shutil.copytree(HERE / "ai_sdk", place, dirs_exist_ok=True)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], cwd=place, check=True)
    return place


def _digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--base", help="folder of the base model (default: Qwen2.5-Coder-0.5B-Instruct from PyPI)")
    made.add_argument("--prompt", metavar="FOLDER", help="a saved prompt (default: one that is learned here)")
    made.add_argument("--bare", action="store_true", help="ask the base model itself")
    made.add_argument("pytest", nargs="*", help="options of pytest, behind --")
    return made.parse_args()


if __name__ == "__main__":
    sys.exit(main())
