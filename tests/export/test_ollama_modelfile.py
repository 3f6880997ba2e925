"""Modelfiles of Ollama. That Go writes by them what transformers writes by the exported template was seen with Go."""

from dataclasses import replace

import pytest
from helpers.chat_models import chat_base
from helpers.chat_prompts import SYSTEM, chat_prompt
from helpers.learned_prompts import learned
from helpers.tiny_models import tiny_base

from softprompt.data.encoding.placement import Placement
from softprompt.data.task import TaskSpec
from softprompt.export.ollama_modelfile import make_modelfile
from softprompt.prompts.saved_prompt import Prompt

WORDS = "".join(f"<|sp:one:{index}|>" for index in range(4))
ALONE = (
    '{{ if or .System (ne (len .Messages) 1) }}{{ template "expected one message of the user: the prompt was learned '
)
ALONE += 'from single texts" . }}{{ end }}'


def made(prompt: Prompt, family: str) -> str | None:
    base = tiny_base("llama") if family == "llama" else chat_base(family)
    return make_modelfile(base, "one", prompt, "served.gguf")


class TestOfConversations:
    def test_the_kept_system_message_can_be_replaced(self) -> None:
        text = made(chat_prompt("qwen2_5", system=SYSTEM, labels=("yes", "no")), "qwen2_5")
        assert text is not None
        turn = "<|im_end|>\n<|im_start|>"
        opening = f"<|im_start|>system\n{WORDS}"
        assert text.splitlines()[:2] == ["# ollama create one -f THIS_FILE", "FROM ./served.gguf"]
        assert (
            f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{turn}user\n{{{{ else }}}}{opening}{SYSTEM}{turn}user\n"
            in text
        )
        assert (
            f"{{{{ .Content }}}}{{{{ if eq (len (slice $.Messages $at)) 1 }}}}{turn}assistant\n{{{{ else }}}}" in text
        )
        assert (
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{turn}user\n{{{{ else if ne .Role "system" }}}}'
            in text
        )
        assert f'SYSTEM """{SYSTEM}"""\nPARAMETER temperature 0\nPARAMETER stop "<|im_end|>"\n' in text

    def test_one_that_was_learned_without_is_refused(self) -> None:
        text = made(chat_prompt("llama3_1"), "llama3_1")
        assert text is not None
        assert '{{ if .System }}{{ template "expected no system message' in text
        assert "SYSTEM" not in text
        # Ollama puts it in front
        assert "<|begin_of_text|>" not in text

    def test_earlier_turns_end_as_the_template_ends_them(self) -> None:
        # which leaves thoughts out of earlier turns, and opens the last with none
        text = made(chat_prompt("qwen3", arguments={"enable_thinking": False}), "qwen3")
        assert text is not None
        asked, answered = text.partition("(slice $.Messages $at)) 1 }}")[2].split("{{ end }}")[0].split("{{ else }}")
        assert asked == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert answered == "<|im_end|>\n<|im_start|>assistant\n"

    @pytest.mark.parametrize(
        ("family", "format"),
        [
            ("mistral_v3", {"system": SYSTEM}),  # whose template puts it beside the last user's message
            ("qwen2_5", {"system": 'End with """'}),
            ("qwen2_5", {"system": 'Say "yes"'}),
        ],
    )
    def test_what_cannot_be_written_has_none(self, family: str, format: dict[str, str]) -> None:
        assert made(chat_prompt(family, **format), family) is None


class TestOfTexts:
    def test_one_message_is_answered(self) -> None:
        text = made(replace(learned("llama", length=4), spec=TaskSpec("generation", "Say: {{ text }}\n")), "llama")
        body = f"{{{{ range .Messages }}}}{WORDS}Say: {{{{ .Content }}}}\n{{{{ end }}}}"
        assert text is not None
        assert text.splitlines(keepends=True)[2:] == [
            *f'TEMPLATE """{ALONE}{body}"""\n'.splitlines(keepends=True),
            "PARAMETER temperature 0\n",
        ]

    def test_a_template_says_nothing_to_go(self) -> None:
        spec = TaskSpec("classification", 'A "{{ "{{" }}" {{ text }}"""', ("a", "b c d"), ("a", "b c d"))
        text = made(replace(learned("llama", length=4), spec=spec), "llama")
        assert text is not None
        assert (
            f'{{{{ "{WORDS}A \\x22{{{{\\x22 " }}}}{{{{ .Content }}}}{{{{ "\\x22\\x22\\x22" }}}}{{{{ end }}}}"""' in text
        )
        assert "PARAMETER num_predict" in text

    def test_a_template_that_does_more_than_put_a_text_somewhere(self) -> None:
        spec = TaskSpec("generation", "{{ text | upper }}")
        assert made(replace(learned("llama"), spec=spec), "llama") is None

    def test_a_prompt_in_front_of_bos(self) -> None:
        state = replace(learned("llama").state, placement=Placement(behind_bos=False))
        assert made(replace(learned("llama"), states=(state,)), "llama") is None
