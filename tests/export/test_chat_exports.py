"""Prompts of conversations in every export: the ids of the exported tokenizer's own chat template, the same logits."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import CHAT_FAMILIES, WITHOUT_SYSTEM, chat_base, chat_model, chat_template, chat_tokenizer
from helpers.chat_prompts import (
    LINES,
    LONG,
    SHORT,
    SYSTEM,
    TOOL,
    WITH_CALLS,
    chat_prompt,
    example_of,
    spelling_marks,
    takes_tools,
)
from helpers.embedded_messages import read_embeddings, read_ids
from helpers.gguf_models import write_gguf
from helpers.learned_prompts import CLOSE, learned
from helpers.tiny_models import tiny_base
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.data.chats.chat_format import PLACEMENTS, ChatFormat
from softprompt.data.chats.conversation import Message
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import BaseModelError, ConfigError, PromptFileError
from softprompt.export.engine_client import Tasks
from softprompt.export.exported_chat_template import make_open_template
from softprompt.export.gguf import bake_gguf, gguf_usage
from softprompt.export.numpy_array import write_npy
from softprompt.export.peft import read_peft, write_peft
from softprompt.export.prompt_exchange import import_prompt
from softprompt.export.vllm_embeddings import EmbeddedTasks, write_embeds
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference.chat_answers import find_beginning
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import front_ids, make_prefix
from softprompt.prompts.saved_prompt import Prompt

ASKED = (SHORT, LONG, LINES)
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def prompts_of(family: str) -> dict[str, Prompt]:
    """In all three places, with a system prompt, an empty one and none, alike or not, with fixed turns, with labels."""
    turns = (Message("user", "One?"), Message("assistant", "1"))
    systems = (None, "") if family in WITHOUT_SYSTEM else (None, "", SYSTEM)
    found = {
        f"{place}-{number}{'' if shared else '-own'}": chat_prompt(
            family, placement=place, system=system, shared=shared, seed=number
        )
        for place in PLACEMENTS
        for number, system in enumerate(systems)
        for shared in (True, False)
    }
    found["labels"] = chat_prompt(family, labels=("yes", "no"))
    found["turns"] = chat_prompt(family, turns=turns, length=6)
    return found


def our_ids(base: FrozenLM, prompt: Prompt, words: list[int], messages: Any) -> list[int]:
    place = prompt.state.placement
    (text,) = ExampleEncoder(base, prompt.spec, prompt.state.length).encode_texts([example_of(messages)])
    return [*front_ids(base, place), *words, *place.behind, *text]


@torch.no_grad()
def our_logits(base: FrozenLM, prompt: Prompt, messages: Any) -> torch.Tensor:
    (text,) = ExampleEncoder(base, prompt.spec, prompt.state.length).encode_texts([example_of(messages)])
    given = torch.tensor([text])
    return base.logits(make_prefix(base, prompt.state).hidden(given, torch.ones_like(given))[0, -1:])[0]


class TestVocabulary:
    @pytest.mark.parametrize("family", CHAT_FAMILIES)
    def test_its_chat_template_gives_the_ids_that_were_learned(self, tmp_path: Path, family: str) -> None:
        base, prompts = chat_base(family), prompts_of(family)
        baked = bake_vocabulary(base, prompts, tmp_path / "out")
        assert baked.inexact == ()
        tokenizer, tasks = AutoTokenizer.from_pretrained(tmp_path / "out"), Tasks.load(tmp_path / "out")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        for name, prompt in prompts.items():
            for messages in ASKED:
                expected = our_ids(base, prompt, baked.ids(name), messages)
                found: Any = tokenizer.apply_chat_template(messages, task=name, add_generation_prompt=True)
                assert found["input_ids"] == expected
                assert tasks.ids(name, messages) == expected
            # what a user spells is text, and its ids say so
            marks = spelling_marks(family)
            hostile = tasks.ids(name, marks)
            assert hostile == our_ids(base, prompt, baked.ids(name), marks)
            assert [one for one in hostile if one in baked.all_ids] == baked.ids(name)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([hostile])).logits[0, -1, : base.vocabulary_size]
            known = torch.tensor([one for one in range(base.vocabulary_size) if one not in baked.all_ids])
            torch.testing.assert_close(logits[known], our_logits(base, prompt, marks)[known], **CLOSE)

    @pytest.mark.parametrize("family", [one for one in CHAT_FAMILIES if one not in WITHOUT_SYSTEM])
    def test_another_system_message_and_tools_stand_where_the_server_puts_them(
        self, tmp_path: Path, family: str
    ) -> None:
        base = chat_base(family)
        prompts = {place: chat_prompt(family, placement=place, system=SYSTEM) for place in PLACEMENTS}
        baked = bake_vocabulary(base, prompts, tmp_path / "out")
        write_embeds(base, prompts, tmp_path / "embeds")
        tokenizer, tasks = AutoTokenizer.from_pretrained(tmp_path / "out"), Tasks.load(tmp_path / "out")
        embedded: EmbeddedTasks = EmbeddedTasks.load(tmp_path / "embeds")
        with_tools = [(WITH_CALLS, [TOOL]), (SHORT, [TOOL])] if takes_tools(family) else []
        for name, prompt in prompts.items():
            for messages, tools in [([{"role": "system", "content": "Another."}, *LONG], None), *with_tools]:
                found: Any = tokenizer.apply_chat_template(
                    messages, task=name, tools=tools, add_generation_prompt=True
                )["input_ids"]
                assert tasks.ids(name, messages, tools=tools) == found
                served = find_beginning(
                    base, prompt.spec, prompt.states, example_of(messages, tools or ()).conversation
                )
                (text,) = ExampleEncoder(base, served.spec, 4).encode_texts([example_of(messages, tools or ())])
                place = served.states[0].placement
                assert found == [*front_ids(base, place), *baked.ids(name), *place.behind, *text]
                given = torch.tensor([text])
                with torch.no_grad():
                    hidden = make_prefix(base, *served.states).hidden(given, torch.ones_like(given))
                    model: Any = base.model
                    request = embedded.request(name, messages, model="m", tools=tools)
                    rows = read_embeddings(base, tmp_path / "embeds", request)
                    logits = model(inputs_embeds=rows[None]).logits[0, -1].float()
                torch.testing.assert_close(logits, base.logits(hidden[0, -1:])[0], **CLOSE)

    @pytest.mark.parametrize("family", CHAT_FAMILIES)
    def test_answers_end_with_the_turn(self, tmp_path: Path, family: str) -> None:
        base = chat_base(family)
        bake_vocabulary(base, {"one": chat_prompt(family)}, tmp_path / "out")
        ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
        said = [*SHORT, {"role": "assistant", "content": "Four."}]
        written = base.tokenizer.apply_chat_template(said)["input_ids"]
        assert {written[-1], written[-2]} & set(ends)
        request = Tasks.load(tmp_path / "out").request("one", SHORT, model="m")
        assert set(request["stop_token_ids"]) <= set(ends)

    def test_a_template_of_ones_own_is_exported_with_its_end_of_turns(self, tmp_path: Path) -> None:
        base = chat_base("qwen2_5")
        source = CHATML.replace("<eos>", "<|endoftext|>")
        prompt = chat_prompt("qwen2_5", template=source, system=SYSTEM)
        bake_vocabulary(base, {"one": prompt}, tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        text = tokenizer.apply_chat_template(SHORT, tokenize=False, add_generation_prompt=True)
        words = "".join(f"<|sp:one:{index}|>" for index in range(4))
        assert text == f"<|system|>{words}{SYSTEM}<|endoftext|>\n<|user|>Two and two?<|endoftext|>\n<|assistant|>"

    def test_one_checkpoint_holds_prompts_of_texts_and_of_several_templates(self, tmp_path: Path) -> None:
        base = chat_base("qwen3")
        other = CHATML.replace("<eos>", "<|endoftext|>")
        text = chat_prompt("qwen3")
        plain = replace(
            text,
            spec=TaskSpec("generation", "Say: {{ text }}\n"),
            states=(replace(text.state, placement=find_placement(base, TaskSpec.of())),),
        )
        prompts = {
            "plain": plain,
            "own": chat_prompt("qwen3", template=other),
            "thinking": chat_prompt("qwen3", arguments={"enable_thinking": True}),
            "not": chat_prompt("qwen3", arguments={"enable_thinking": False}),
        }
        baked = bake_vocabulary(base, prompts, tmp_path / "out")
        assert baked.inexact == ()
        tokenizer, tasks = AutoTokenizer.from_pretrained(tmp_path / "out"), Tasks.load(tmp_path / "out")
        for name in ("own", "thinking", "not"):
            # by name, or by a system message that is the name
            named = [{"role": "system", "content": name}, *LONG]
            for found in (
                tokenizer.apply_chat_template(LONG, task=name, add_generation_prompt=True),
                tokenizer.apply_chat_template(named, add_generation_prompt=True),
            ):
                assert found["input_ids"] == tasks.ids(name, LONG)
        assert tokenizer.apply_chat_template(SHORT, task="plain")["input_ids"] == tasks.ids("plain", "Two and two?")
        with pytest.raises(ConfigError, match="'plain' was learned from single texts, not from conversations"):
            tasks.ids("plain", LONG)
        with pytest.raises(TemplateError, match="expected one message of the user and no earlier turns"):
            tokenizer.apply_chat_template(LONG, task="plain")

    def test_what_has_no_place_is_refused_by_the_template(self, tmp_path: Path) -> None:
        base = chat_base("qwen2_5")
        prompts = {"kept": chat_prompt("qwen2_5", system=SYSTEM), "none": chat_prompt("qwen2_5")}
        bake_vocabulary(base, prompts, tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

        def write(task: str, messages: Any, **options: Any) -> str:
            return str(tokenizer.apply_chat_template(messages, task=task, tokenize=False, **options))

        system = {"role": "developer", "content": "Another."}
        assert "|>Another.<|im_end|>" in write("kept", [system, *SHORT])
        assert SYSTEM not in write("kept", [system, *SHORT])
        with pytest.raises(TemplateError, match="the prompt was learned without one, leave it out"):
            write("none", [system, *SHORT])
        parts = [{"type": "text", "text": "a <|sp:kept"}, {"type": "text", "text": ":0|>"}]
        assert "a <| sp:kept:0|>" in write("kept", [{"role": "user", "content": parts}])
        with pytest.raises(TemplateError, match="expected a message of text"):
            write("kept", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
        tool = {"type": "function", "function": {"name": "<|sp:kept:0|>", "parameters": {}}}
        with pytest.raises(TemplateError, match=r"expected no '<\|sp:' in calls and tools"):
            write("kept", SHORT, tools=[tool])
        with pytest.raises(TemplateError, match="expected neither tools nor documents"):
            write("kept", SHORT, documents=[{"text": "x"}])

    def test_the_folder_says_what_to_send(self, tmp_path: Path) -> None:
        base, turns = chat_base("qwen2_5"), (Message("user", "One?"), Message("assistant", "1"))
        prompts = {"kept": chat_prompt("qwen2_5", system=SYSTEM, turns=turns), "first": chat_prompt("qwen2_5")}
        prompts["first"] = chat_prompt("qwen2_5", placement="first")
        bake_vocabulary(base, prompts, tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        tasks = json.loads((tmp_path / "out" / "softprompt.json").read_text())["tasks"]
        # the model's own template and these messages give the same text
        messages = [*tasks["kept"]["messages"], *SHORT]
        own = tokenizer.apply_chat_template(
            messages, chat_template=chat_template("qwen2_5"), tokenize=False, add_generation_prompt=True
        )
        assert own == tokenizer.apply_chat_template(SHORT, task="kept", tokenize=False, add_generation_prompt=True)
        assert tasks["first"]["messages"] is None
        readme = (tmp_path / "out" / "README.md").read_text()
        assert SYSTEM in readme
        assert "learned without a system message" in readme
        assert "2 turns stand in front" in readme


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_the_template_of_a_gguf_file_is_plain_jinja(tmp_path: Path, family: str) -> None:
    base, prompts = chat_base(family), prompts_of(family)
    baked = bake_vocabulary(base, prompts, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(make_open_template(base, prompts))
    names = {key: str(value) for key, value in base.tokenizer.special_tokens_map.items()}
    for name, prompt in prompts.items():
        text = template.render(messages=LONG, task=name, add_generation_prompt=True, **names)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == our_ids(base, prompt, baked.ids(name), LONG)
    # llama.cpp's server starts with no template that refuses messages which name no task
    own = base.tokenizer.apply_chat_template(LONG, add_generation_prompt=True, tokenize=False)
    assert template.render(messages=LONG, add_generation_prompt=True, **names) == own


def test_the_template_of_a_gguf_file_of_a_base_model_writes_what_is_said(tmp_path: Path) -> None:
    template = ImmutableSandboxedEnvironment().from_string(
        make_open_template(tiny_base("llama"), {"one": learned("llama")})
    )
    said = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    assert template.render(messages=said) == "One.\nTwo."
    assert template.render(messages=said[:1], task="one").endswith("<|sp:one:4|>One.; label:")


def test_a_gguf_file_has_the_template_and_the_end_of_turns(tmp_path: Path) -> None:
    base, source = tiny_base("llama"), write_gguf(tmp_path / "source.gguf")
    chat = ChatFormat(CHATML, system=SYSTEM)
    spec = TaskSpec("generation", "{{ text }}", chat=chat)
    state = replace(learned("llama").state, placement=find_placement(base, spec))
    prompt = replace(learned("llama"), spec=spec, states=(state,))
    bake_gguf(base, {"one": prompt}, source, tmp_path / "out.gguf")
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "out.gguf")
    assert reader.get_field("tokenizer.ggml.eot_token_id").contents() == base.tokenizer.eos_token_id
    assert CHATML[:40] in reader.get_field("tokenizer.chat_template").contents()
    usage = gguf_usage(tmp_path / "out.gguf")
    ids = Tasks(base.tokenizer, usage).ids("one", SHORT)
    assert ids == our_ids(base, prompt, usage["tasks"]["one"]["ids"], SHORT)


class TestEmbeddedMessages:
    @pytest.mark.parametrize("family", CHAT_FAMILIES)
    def test_are_what_the_model_reads(self, tmp_path: Path, family: str) -> None:
        base, prompts = chat_base(family), prompts_of(family)
        write_embeds(base, prompts, tmp_path / "out")
        tasks: EmbeddedTasks = EmbeddedTasks.load(tmp_path / "out")
        for name, prompt in prompts.items():
            rows = read_embeddings(base, tmp_path / "out", tasks.request(name, LONG, model="m"))
            model: Any = base.model
            with torch.no_grad():
                logits = model(inputs_embeds=rows[None]).logits[0, -1].float()
            torch.testing.assert_close(logits, our_logits(base, prompt, LONG), **CLOSE)
            with pytest.raises(ConfigError, match="it spells a special token of the model, or is longer than"):
                tasks.request(name, spelling_marks(family), model="m")

    @pytest.mark.parametrize("family", CHAT_FAMILIES)
    def test_leave_the_models_own_template_to_other_messages(self, tmp_path: Path, family: str) -> None:
        base = chat_base(family)
        write_embeds(base, {"one": chat_prompt(family)}, tmp_path / "out")
        tools = [(WITH_CALLS, [TOOL])] if takes_tools(family) else []
        for messages, given in [(SHORT, None), (LONG, None), (LINES, None), *tools]:
            own = base.tokenizer.apply_chat_template(messages, tools=given, add_generation_prompt=True)["input_ids"]
            sent = [dict(one) for one in messages]
            for one in sent:
                if "tool_calls" in one:
                    (call,) = one["tool_calls"]
                    function = {"name": "find_film", "arguments": json.dumps(call["function"]["arguments"])}
                    one["tool_calls"] = [{**call, "function": function}]
            found, _ = read_ids(tmp_path / "out", {"messages": sent, "tools": given})
            assert found == own

    def test_of_texts_and_of_several_templates_in_one_folder(self, tmp_path: Path) -> None:
        base, text = chat_base("qwen3"), chat_prompt("qwen3")
        states = (replace(text.state, placement=find_placement(base, TaskSpec.of())),)
        plain = replace(text, spec=TaskSpec("generation", "Say: {{ text }}\n"), states=states)
        own = chat_prompt("qwen3", template=CHATML.replace("<eos>", "<|endoftext|>"))
        write_embeds(base, {"plain": plain, "own": own}, tmp_path / "out")
        tasks: EmbeddedTasks = EmbeddedTasks.load(tmp_path / "out")
        ids, held = read_ids(tmp_path / "out", tasks.request("plain", "Hello", model="m"))
        assert ids == [held, *base.tokenizer("Say: Hello\n").input_ids]
        words = base.tokenizer.decode(read_ids(tmp_path / "out", tasks.request("own", SHORT, model="m"))[0][1:])
        assert words.endswith("<|user|>Two and two?<|endoftext|>\n<|assistant|>")
        with pytest.raises(ConfigError, match="'plain' was learned from single texts, not from conversations"):
            tasks.request("plain", LONG, model="m")
        with pytest.raises(TemplateError, match="expected one message of the user and no earlier turns"):
            read_ids(tmp_path / "out", {"messages": [tasks.message("plain"), *LONG]})

    def test_another_server_is_told_what_is_wrong(self, tmp_path: Path) -> None:
        base = chat_base("qwen2_5")
        write_embeds(
            base, {"kept": chat_prompt("qwen2_5", system=SYSTEM), "none": chat_prompt("qwen2_5")}, tmp_path / "o"
        )
        tasks: EmbeddedTasks = EmbeddedTasks.load(tmp_path / "o")
        # parts that vLLM joined, as it does for templates that take text alone
        joined = {"role": "system", "content": "<prompt_embeds>\nkept"}
        with pytest.raises(TemplateError, match="--chat-template-content-format openai"):
            read_ids(tmp_path / "o", {"messages": [joined, *SHORT]})
        with pytest.raises(TemplateError, match="the name of its task behind the first, one of kept, none"):
            read_ids(tmp_path / "o", {"messages": [{"role": "system", "content": joined["content"][:15]}, *SHORT]})
        with pytest.raises(TemplateError, match="the prompt was learned without one, leave it out"):
            read_ids(tmp_path / "o", {"messages": [tasks.message("none", "Another."), *SHORT]})
        tool = {"type": "function", "function": {"name": "<prompt_embeds>", "parameters": {}}}
        with pytest.raises(TemplateError, match="expected no '<prompt_embeds>' in calls and tools"):
            read_ids(tmp_path / "o", {"messages": [tasks.message("kept"), *SHORT], "tools": [tool]})


# whose embeddings PEFT sees as the model does
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1", "mistral_v3", "phi3_5"])
def test_an_adapter_of_peft_holds_what_stands_around_the_prompt(tmp_path: Path, family: str, kind: str) -> None:
    peft = pytest.importorskip("peft")
    base = chat_base(family)
    for place in ("system-start", "first"):
        prompt = chat_prompt(family, kind, system=SYSTEM, placement=place)
        if kind == "key_values" and family == "phi3_5":
            with pytest.raises(BaseModelError, match="keeps no more than 8 tokens in some layers, and"):
                write_peft(base, prompt, tmp_path / place)
            continue
        write_peft(base, prompt, tmp_path / place)
        again = read_peft(tmp_path / place)
        assert TaskSpec.from_dict(again.usage["task"]) == prompt.spec
        state = again.on(base)
        assert state.placement == prompt.state.placement
        assert all(torch.equal(one, other) for one, other in zip(state.tensors, prompt.state.tensors, strict=True))
        ids = Tasks.load(tmp_path / place).text_ids(place, LONG)
        model = peft.PeftModel.from_pretrained(chat_model(family), tmp_path / place).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(logits, our_logits(base, prompt, LONG), **CLOSE)
        assert "text_ids" in (tmp_path / place / "README.md").read_text()


def test_an_array_has_no_place_for_turns(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="stands among other tokens, in the system turn of a conversation"):
        write_npy(chat_prompt("qwen2_5"), tmp_path / "p.npy")


def test_a_row_of_text_is_what_the_user_says(tmp_path: Path) -> None:
    base, prompt = chat_base("qwen2_5"), chat_prompt("qwen2_5", labels=("yes", "no"))
    bake_vocabulary(base, {"one": prompt}, tmp_path / "out")
    tasks = Tasks.load(tmp_path / "out")
    assert tasks.ids("one", "Two and two?") == tasks.ids("one", SHORT)
    request = tasks.request("one", "Two and two?", model="m")
    encoder = ExampleEncoder(base, prompt.spec, 4)
    assert encoder.verbalizer is not None
    assert request["allowed_token_ids"] == list(encoder.verbalizer.rows)
    (text,) = encoder.encode_texts([Example("Two and two?")])
    assert request["prompt"][-len(text) :] == list(text)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["qwen2_5", "llama3_1"])
def test_a_prompt_that_peft_learned_on_chats_stands_before_the_first_turn(tmp_path: Path, family: str) -> None:
    peft = pytest.importorskip("peft")
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(chat_model(family), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    rows = [{"messages": [*LONG[:1], {"role": "assistant", "content": f"Answer {number}."}]} for number in range(8)]
    prompt = import_prompt(base, tmp_path / "theirs", task=Task.of(rows))
    assert prompt.spec.chat is not None
    assert prompt.spec.chat.placement == "first"
    asked: Any = tokenizer.apply_chat_template(LONG, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**asked).logits[0, -1].float()
    torch.testing.assert_close(our_logits(base, prompt, LONG), logits, **CLOSE)


def test_an_adapter_of_ours_comes_back_with_its_conversations(tmp_path: Path) -> None:
    base, prompt = chat_base("qwen2_5"), chat_prompt("qwen2_5", system=SYSTEM)
    write_peft(base, prompt, tmp_path / "ours")
    rows = [{"messages": [*SHORT, {"role": "assistant", "content": f"Answer {number}."}]} for number in range(8)]
    for task in (None, Task.of(rows)):
        again = import_prompt(base, tmp_path / "ours", task=task)
        assert again.spec.chat == prompt.spec.chat
        assert again.state.placement == prompt.state.placement
        torch.testing.assert_close(again.state.tensor, prompt.state.tensor, atol=0, rtol=0)
