"""Answers, in OpenAI's schema where it has one."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

WARNINGS = Field(None, description="an extension: what was cut, or asked for without effect; not there if nothing was")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="virtual tokens, template and text")
    completion_tokens: int = Field(description="tokens generated; a label is chosen, not generated")
    total_tokens: int


class CompletionLogprobs(BaseModel):
    tokens: list[str] = Field(description="one that is no whole letter as bytes:\\\\xe2")
    token_logprobs: list[float | None] = Field(description="null for the first token of a text that is echoed")
    top_logprobs: list[dict[str, float] | None] = Field(description="the likeliest ones, and the token itself")
    text_offset: list[int] = Field(description="characters of the text before each")


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None = None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str = Field(description="what answered, with its version")
    choices: list[Choice]
    usage: Usage
    warnings: list[str] | None = WARNINGS


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="a JSON object as text")


class CallOfTool(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(BaseModel):
    role: Literal["assistant"]
    content: str | None = Field(description="null where it only calls tools")
    refusal: None = None
    tool_calls: list[CallOfTool] | None = Field(None, description="not there without any")
    reasoning_content: str | None = Field(None, description="an extension: its thoughts; not there without any")


class TokenAlternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TokenAlternative):
    top_logprobs: list[TokenAlternative]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: Message
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChatLogprobs | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str = Field(description="what answered, with its version")
    choices: list[ChatChoice]
    usage: Usage
    warnings: list[str] | None = WARNINGS


class LabelResult(BaseModel):
    index: int
    label: str
    probabilities: dict[str, float]


class Classification(BaseModel):
    object: Literal["classification"]
    model: str = Field(description="what answered, with its version")
    results: list[LabelResult] = Field(description="in the order of the input")
    usage: Usage
    warnings: list[str] | None = WARNINGS


class MetricInterval(BaseModel):
    """A metric with its 95% interval."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    split: Literal["test", "validation"]
    metric: str = Field(max_length=100)
    value: float
    low: float
    high: float
    n: int = Field(ge=1, description="examples")


class ChatInfo(BaseModel):
    """How a prompt was learned on conversations."""

    system: str | None = Field(description="the system message beside its virtual tokens")
    takes_system: bool = Field(description="whether a request may have one, which takes its place")
    tools: list[str] = Field(description="names of those that it was learned with")


class PromptInfo(BaseModel):
    """What is known of a prompt; of a version that was not asked yet, only where it is."""

    version: str = Field(description="name@version")
    loaded: bool
    kind: Literal["classification", "generation"] | None = None
    labels: list[str] | None = None
    template: str | None = Field(None, description="Jinja2; text is the text that is asked")
    columns: list[str] | None = Field(None, description="that the template uses")
    virtual_tokens: int | None = None
    chat: ChatInfo | None = Field(None, description="of a prompt that answers conversations")
    measured: MetricInterval | None = Field(None, description="when it was learned")
    example: str | None = Field(None, description="a text to begin with, of the settings or the prompt")
    learned_in: str | None = Field(None, description="precision, where the base model is loaded in another one")
    error: str | None = Field(None, description="why it cannot be used")


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    softprompt: PromptInfo | None = Field(None, description="an extension; the base model has none")


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetails


class ReloadResult(BaseModel):
    added: list[str] = Field(description="versions that came")
    removed: list[str] = Field(description="versions that went")
    moved: list[str] = Field(description="aliases that moved")
    troubles: list[str] = Field(description="what could not be read, and stays as it was")


class Health(BaseModel):
    status: Literal["ok", "starting", "waiting for the engine", "stopping"]
