"""Requests, in OpenAI's schema where it has one.

Of OpenAI's fields, those that cannot change an answer are taken and left alone; those that would are taken only with
the value that changes nothing; all others are refused by name. Numbers are numbers and strings are strings: nothing is
converted.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
)

from softprompt.inference.token_logprobs import MAX_TOP_LOGPROBS

MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters
MAX_INSTRUCTION_LENGTH = 4000
MAX_SEED = 2**63 - 1  # the largest one
MAX_CHOICES = 16  # completions of one text
MAX_INTEGER = 2**53  # of other whole numbers: up to there all readers of JSON agree


def _accept_whole_float(value: Any) -> Any:
    # 1.0 is a whole number in JSON
    return int(value) if isinstance(value, float) and value.is_integer() else value


# the bounds come first: behind the validator they would be checked, but would not be on the OpenAPI page
WholeNumber = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER), BeforeValidator(_accept_whole_float)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_INTEGER), BeforeValidator(_accept_whole_float)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER), BeforeValidator(_accept_whole_float)]
TopK = Annotated[int, Field(ge=-1, le=MAX_INTEGER), BeforeValidator(_accept_whole_float)]
Seed = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), BeforeValidator(_accept_whole_float)]
# more than white space, as Python and JavaScript both see it
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"[^\s\x1c-\x1f\x85\ufeff]")]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Columns = Annotated[
    dict[str, JsonValue],
    Field(
        description="further columns of the template", json_schema_extra={"propertyNames": {"not": {"const": "text"}}}
    ),
]

Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES), BeforeValidator(_accept_whole_float)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), BeforeValidator(_accept_whole_float)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(lambda value: [*map(_accept_whole_float, value)] if isinstance(value, list) else value),
]

OneInteger = Annotated[int, Field(ge=1, le=1), BeforeValidator(_accept_whole_float)]
ZeroInteger = Annotated[int, Field(ge=0, le=0), BeforeValidator(_accept_whole_float)]
ZeroFloat = Annotated[float, Field(ge=0, le=0)]
OneFloat = Annotated[float, Field(ge=1, le=1)]
NoItems = Annotated[list[Any], Field(max_length=0)]
NoEntries = Annotated[dict[str, Any], Field(max_length=0)]


class RequestBody(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(
        extra="forbid", strict=True, regex_engine="python-re", allow_inf_nan=False, hide_input_in_errors=True
    )


class Baseline(RequestBody):
    """The base model answers in place of the learned prompt, which shows what that gains."""

    instruction: Annotated[str, StringConstraints(max_length=MAX_INSTRUCTION_LENGTH)] | None = Field(
        None, description="words in front, and a blank line behind them"
    )
    template: bool = Field(True, description="whether the text stands in the task's template, or bare")


BASELINE = Field(
    None,
    description="an extension: the base model, which the API key must allow too, answers without the learned prompt; "
    "{} by the task's template, with an instruction by a written prompt, with template false by the bare text",
)


class StreamOptions(RequestBody):
    include_usage: bool | None = Field(None, description="one more event at the end, with the usage")
    continuous_usage_stats: bool | None = Field(None, description="with include_usage: what was used so far, in all")
    include_obfuscation: bool | None = Field(None, description="has no effect")


class TextFormat(RequestBody):
    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    type: Literal["json_object"]


class JsonSchema(RequestBody):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(description="has no effect")
    description: str | None = Field(None, description="has no effect")
    json_schema: dict[str, JsonValue] = Field(alias="schema", description="what an answer is valid by")
    strict: bool | None = Field(None, description="has no effect: an answer follows its schema in any case")


class JsonSchemaFormat(RequestBody):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class BaseCompletionRequest(RequestBody):
    """What requests for completions of both kinds have."""

    model: str = Field(
        min_length=1, description="name, name@version or name@alias of a prompt, or the base model's name"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0, the default, is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: TopK | None = Field(None, description="an extension: of so many likeliest tokens; 0 or -1: of all")
    seed: Seed | None = Field(None, description="of sampling")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    columns: Columns | None = None
    baseline: Baseline | None = BASELINE

    n: Choices | None = Field(None, description="completions of each text, each sampled for itself")
    response_format: ResponseFormat | None = Field(None, description="any text, any JSON object, or JSON by a schema")

    frequency_penalty: ZeroFloat | None = None
    presence_penalty: ZeroFloat | None = None
    logit_bias: NoEntries | None = None

    # of vLLM, whose load testers send them
    ignore_eos: bool | None = Field(None, description="has no effect, of which a warning tells if it is true")
    min_tokens: ZeroInteger | None = None
    min_p: ZeroFloat | None = None
    repetition_penalty: OneFloat | None = None
    length_penalty: OneFloat | None = None
    stop_token_ids: NoItems | None = None
    use_beam_search: Literal[False] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: bool | None = Field(None, description="has no effect")
    truncate_prompt_tokens: None = None
    prompt_logprobs: None = None
    priority: WholeNumber | None = Field(None, description="has no effect")
    request_id: str | None = Field(None, description="has no effect: the header X-Request-Id has one")

    user: str | None = Field(None, description="has no effect")
    metadata: dict[str, Any] | None = Field(None, description="has no effect")
    store: bool | None = Field(None, description="has no effect: nothing is stored")
    service_tier: str | None = Field(None, description="has no effect")
    safety_identifier: str | None = Field(None, description="has no effect")
    prompt_cache_key: str | None = Field(None, description="has no effect")
    prompt_cache_retention: str | None = Field(None, description="has no effect")

    @property
    def usage_in_stream(self) -> bool | Literal["always"]:
        """Whether a stream tells what was used: at its end, or in every event."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return False
        return "always" if options.continuous_usage_stats else True


# nothing follows a text only where the answer is the text itself
_SOME_TOKENS: dict[str, JsonValue] = {"properties": {"max_tokens": {"not": {"const": 0}}}}
_ECHO: dict[str, JsonValue] = {"properties": {"echo": {"const": True}}, "required": ["echo"]}


class CompletionRequest(BaseCompletionRequest):
    """``POST /v1/completions``"""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_SOME_TOKENS, _ECHO]})

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    ) = Field(description="one text, or several, for the template; token ids are read as they are, without it")
    max_tokens: NotNegative | None = Field(None, description="0, with echo: nothing follows the text")
    echo: bool | None = Field(None, description="the completion begins with the text, which is read without template")
    logprobs: TopLogprobs | None = Field(
        None, description="log-probabilities of the tokens, and of so many likeliest ones in each place"
    )

    best_of: OneInteger | None = None
    suffix: Literal[""] | None = None


class TextPart(RequestBody):
    type: Literal["text"]
    text: str


class OtherPart(BaseModel):
    """A part of a message that is refused, by its type, unless it is text too."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str


def _name_part(part: Any) -> str:
    return "text" if not isinstance(part, dict) or part.get("type") in ("text", None) else "other"


Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[OtherPart, Tag("other")],
    Discriminator(_name_part),
]


class CalledFunction(RequestBody):
    name: str
    arguments: str | dict[str, JsonValue] | None = Field(None, description="JSON, as text or as it is")


class CallOfTool(RequestBody):
    id: str | None = None
    type: Literal["function"] | None = None
    index: NotNegative | None = Field(None, description="has no effect")
    function: CalledFunction | None = Field(None, description="which is called")


class ChatMessage(RequestBody):
    """A turn; the fields of OpenAI's answers that say nothing may stand in those that are sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1)] | None = None
    name: str | None = Field(None, description="of the tool, or of one of several users")
    tool_calls: list[CallOfTool] | None = Field(None, description="of an assistant")
    tool_call_id: str | None = Field(None, description="of a tool: the call that it answers")
    reasoning_content: str | None = Field(None, description="of an assistant: what it thought")
    reasoning: str | None = Field(None, description="the same")
    refusal: str | None = Field(None, description="of an assistant: what it said instead of content")
    function_call: None = None
    audio: None = None
    annotations: NoItems | None = None


class ToolFunction(RequestBody):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\s\"\\\\<>{}]+$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="a JSON schema")
    strict: bool | None = Field(None, description="has no effect: what is required follows its schema in any case")


class Tool(RequestBody):
    type: Literal["function"]
    function: ToolFunction
    strict: bool | None = Field(None, description="has no effect")


class NamedFunction(RequestBody):
    name: Annotated[str, StringConstraints(min_length=1)]


class NamedTool(RequestBody):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(BaseCompletionRequest):
    """``POST /v1/chat/completions``: a conversation, which ends with the turn that is to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None

    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens")
    top_logprobs: TopLogprobs | None = Field(None, description="with logprobs: of so many likeliest ones in each place")
    tools: list[Tool] | None = Field(None, description="that an assistant may call")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="auto, the default: it calls some if it wants to; required, or one by name: it has to"
    )
    functions: NoItems | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in an answer")
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="of vLLM: what the chat template is given by name, as enable_thinking"
    )
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


class TextRow(BaseModel):
    """One row, as in a file of data: its text, called ``text`` or as the prompt learned it, and whatever other columns
    the template uses."""

    model_config = ConfigDict(
        extra="allow", strict=True, regex_engine="python-re", allow_inf_nan=False, hide_input_in_errors=True
    )
    __pydantic_extra__: dict[str, JsonValue]

    text: Text | None = None


Row = Text | TextRow


class ClassifyRequest(RequestBody):
    """``POST /v1/classify``"""

    model: str = Field(min_length=1, description="name, name@version or name@alias of a prompt for classification")
    input: Row | Annotated[list[Row], Field(min_length=1, fail_fast=True)] = Field(
        description="a text, a row, or a list of them"
    )
    baseline: Baseline | None = BASELINE
