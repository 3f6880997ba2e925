"""A small vLLM server: OpenAI's completions as far as they are asked for, computed by ``transformers``."""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from helpers.tiny_server import Place, wait_for
from safetensors.torch import load_file
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from softprompt.engines.baked_checkpoint import BakedCheckpoint
from softprompt.engines.exported_model import ExportedModel
from softprompt.serving.engine.inference_engine import EngineLimits
from softprompt.serving.engine.prompt_registry import PromptRegistry
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_engine import VllmEngine
from softprompt.serving.uvicorn_server import Server, listen
from softprompt.store.prompt_sources import StoreSource
from softprompt.store.version_store import Store


class FakeVllm:
    """vLLM on a baked checkpoint, or on a plain one with the connector, where it has a folder of prompts.

    Attributes:
        name: of the model.
        key: the API key that it wants.
        refusal: status and headers that every completion is answered with.
        tells: whether it knows ``logprob_token_ids``; older ones leave unknown fields out.
        ignores_prompts: whether it has no connector, and so takes no notice of what a request names.
        breaks_after: tokens after which a stream ends without its end.
        hold: while it is set, no completion is answered, and no stream grows beyond its first token.
        bodies: of all completions that were asked for.
        longest: tokens that it says it takes.
        left: requests that their clients left early.
    """

    def __init__(self, folder: Path, longest: int = 96, prompts: Path | None = None) -> None:
        self._prompts = prompts
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.name = "baked"
        self.key: str | None = None
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.tells = True
        self.ignores_prompts = False
        self.breaks_after: int | None = None
        self.hold = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.left = 0
        self.longest = longest
        self.app = FastAPI()
        self.app.get("/health")(lambda: Response(status_code=200))
        self.app.get("/v1/models")(self._models)
        self.app.post("/v1/completions")(self._completions)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[str]:
        """Its address while it runs, on a free port if none is given."""
        listening = listen("127.0.0.1", port)
        server = Server(shutdown_timeout=0)
        thread = threading.Thread(target=server.serve, args=(self.app, listening))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            self.hold.clear()
            server.stop()
            thread.join(60)
            assert not thread.is_alive()

    def _models(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        return JSONResponse({"object": "list", "data": [{"id": self.name, "max_model_len": self.longest}]})

    async def _completions(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        body = await request.json()
        self.bodies.append(body)
        if self.refusal is not None:
            status, headers = self.refusal
            return JSONResponse({"error": {"message": "so it\nis", "code": status}}, status, headers=headers)
        if body.get("stream"):
            return StreamingResponse(self._streamed(body, request), media_type="text/event-stream")
        if await self._left_while_held(request):
            return Response()
        key = None if self.ignores_prompts else (body.get("kv_transfer_params") or {}).get("softprompt")
        if key is not None and (self._prompts is None or not (self._prompts / f"{key}.safetensors").exists()):
            return JSONResponse({"error": {"message": f"there is no prompt '{key}' on this server", "code": 400}}, 400)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        choices = [self._choice(index, ids, body) for index, ids in enumerate(prompts)]
        # in no particular order, as nothing promises one
        return JSONResponse({"object": "text_completion", "choices": choices[::-1]})

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": "Unauthorized"}, 401)

    def _choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        row = self._logits(ids, body).log_softmax(-1)
        if body.get("prompt_logprobs") is not None:
            told = self._score_prompt(ids, body["prompt_logprobs"])
            return {"index": index, "text": "", "prompt_logprobs": told, "finish_reason": "length"}
        sampled = int(row.argmax())
        told = [sampled, *(body["logprob_token_ids"] if self.tells else [])]
        top = {f"token_id:{one}": max(float(row[one]), -9999.0) for one in told}
        logprobs = {"tokens": [f"token_id:{sampled}"], "token_logprobs": [float(row[sampled])], "top_logprobs": [top]}
        return {"index": index, "text": "", "logprobs": logprobs, "finish_reason": "length"}

    @torch.no_grad()
    def _score_prompt(self, ids: list[int], most: int) -> list[dict[str, Any] | None]:
        """Each token with the likeliest ones in its place."""
        rows = self._model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found: list[dict[str, Any] | None] = [None]
        for row, token in zip(rows, ids[1:], strict=False):
            told = [*row.topk(most).indices.tolist(), token] if most else [token]
            found.append({str(one): {"logprob": float(row[one]), "rank": 1} for one in told})
        return found

    async def _streamed(self, body: dict[str, Any], request: Request) -> AsyncIterator[bytes]:
        if (body.get("structured_outputs") or {}).get("json", {}).get("type") == "nothing":
            refused = {"message": "Grammar error:\nInvalid type: nothing", "type": "BadRequestError", "code": 400}
            yield f"data: {json.dumps({'error': refused})}\n\n".encode()
            return
        ids, grown = list(body["prompt"]), []
        ended = False
        try:
            while not ended:
                row = self._logits(ids, body)
                raw = row.log_softmax(-1)
                for token, bias in body["logit_bias"].items():
                    row[int(token)] += bias
                ids.append(int(row.argmax()))
                grown.append(ids[-1])
                text = self._tokenizer.decode(grown, skip_special_tokens=True)
                stopped = ids[-1] == self._tokenizer.eos_token_id or any(stop in text for stop in body["stop"])
                ended = stopped or len(grown) == body["max_tokens"]
                reason = ("stop" if stopped else "length") if ended else None
                choice = {"index": 0, "text": "?", "token_ids": grown[-1:], "finish_reason": reason}
                if body.get("logprobs") is not None:
                    told = [*raw.topk(body["logprobs"]).indices.tolist(), ids[-1]]
                    choice["logprobs"] = {
                        "tokens": [f"token_id:{ids[-1]}"],
                        "token_logprobs": [float(raw[ids[-1]])],
                        "top_logprobs": [{f"token_id:{one}": float(raw[one]) for one in told}],
                    }
                yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
                if len(grown) == self.breaks_after:
                    return
                if await self._left_while_held(request):
                    return
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left += 1
            raise

    async def _left_while_held(self, request: Request) -> bool:
        """Wait as long as answers are held; whether the client left meanwhile."""
        while self.hold.is_set():
            if await request.is_disconnected():
                self.left += 1
                return True
            await asyncio.sleep(0.01)
        return False

    @torch.no_grad()
    def _logits(self, ids: list[int], body: dict[str, Any]) -> torch.Tensor:
        key = (body.get("kv_transfer_params") or {}).get("softprompt")
        if key is None or self._prompts is None:
            logits: torch.Tensor = self._model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            return logits
        assert body["cache_salt"] == key
        tensors = load_file(self._prompts / f"{key}.safetensors")
        cache = DynamicCache()
        for layer in range(len(tensors) // 2):
            cache.update(tensors[f"keys.{layer}"][None], tensors[f"values.{layer}"][None], layer)
        # the ids in front only hold its place: whatever they are, they are not read
        text = torch.tensor([ids[tensors["keys.0"].shape[1] :]])
        behind: torch.Tensor = self._model(input_ids=text, past_key_values=cache).logits[0, -1].float()
        return behind


class OnVllm(Place):
    """A server whose engine is a vLLM server."""

    def __init__(
        self,
        store: Store,
        exported: Path | ExportedModel,
        url: str,
        limits: EngineLimits | None = None,
        **settings: Any,
    ) -> None:
        self._exported = BakedCheckpoint(exported) if isinstance(exported, Path) else exported
        self._url, self._limits = url, limits or EngineLimits()
        super().__init__(StoreSource(str(store.url)), **settings)

    def make_engine(self) -> Any:
        return VllmEngine(self._exported, VllmClient(self._url), self._limits)

    def make_registry(self, source: Any) -> PromptRegistry:
        check = self.make_engine().check_prompt
        return PromptRegistry(self._exported, source, base_name="tiny", check=check)


def main() -> None:
    """``vllm serve FOLDER --port PORT``, until it is stopped."""
    listening = listen("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))
    print(f"listening on {listening.getsockname()[1]}", flush=True)
    served = FakeVllm(Path(sys.argv[2]))
    served.name = sys.argv[2]
    Server(shutdown_timeout=0).serve(served.app, listening)
