"""The engine's parts: pieces of text, the bounded cache of prefixes, tokens, facts, memory."""

import asyncio
import gc
import random
from collections import Counter

import pytest
import torch
from helpers.served_prompts import (
    MANY,
    TWO,
    WORDS,
    Held,
    alone,
    assert_same,
    collected,
    completed,
    examples,
    examples_of,
    joined,
    lasting,
    prompts,
    said,
    tokens,
    until,
)
from helpers.tiny_models import tiny_base
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from softprompt.data.chats.answer_reading import measure_partial
from softprompt.data.examples import Example
from softprompt.errors import DataError
from softprompt.inference.generation import Completion, GenerationConfig
from softprompt.inference.token_logprobs import ScoredToken
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.completion_chunks import CompletionChunk, Detokenizer, InputUsage
from softprompt.serving.engine.engine_requests import ServedPrompt
from softprompt.serving.engine.engine_stats import BatchStats
from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine
from softprompt.serving.engine.prefix_cache import PrefixCache
from softprompt.serving.engine.request_preparation import RequestPreparer

BASE = tiny_base("llama")
LABELS = ServedPrompt("labels@1", TWO, (tokens(BASE, 3),))
TEXTS = ServedPrompt("texts@1", WORDS, (tokens(BASE, 4),))


def pieces_of(
    ids: list[int], tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...] = ()
) -> tuple[str, list[CompletionChunk]]:
    """The completion of these tokens, and its pieces."""
    completion = Completion(BASE, GenerationConfig(len(ids), stop=stop))
    completion._tokenizer = tokenizer
    pieces = Detokenizer(completion, tokenizer, InputUsage(7, False))
    found = []
    for token in ids:
        going = completion.add(token)
        if (piece := pieces.next_chunk()) is not None:
            found.append(piece)
        if not going:
            break
    return completion.exact, found


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Characters it does not know are single bytes, as in Gemma's and Llama's vocabulary."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "a": 257, "b": 258, " ": 259}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>")


class TestPieces:
    @pytest.mark.parametrize("text", ["é€😀 the film é", "  a good\n\n film \n", "naïve 😀😀", "é"])
    def test_characters_are_whole(self, text: str) -> None:
        for tokenizer in (BASE.tokenizer, byte_tokenizer()):
            whole = text if tokenizer is BASE.tokenizer else "a é€😀 b a😀 "
            ids = tokenizer(whole, add_special_tokens=False).input_ids
            found, pieces = pieces_of(ids, tokenizer)
            assert found == whole == joined(pieces)
            assert not any("\ufffd" in piece.text for piece in pieces)
            assert sum(piece.tokens for piece in pieces) == len(ids)
            assert len(pieces) > 1 or len(whole) == 1

    def test_bytes_that_are_no_character_are_shown_as_such_at_the_end(self) -> None:
        tokenizer = byte_tokenizer()
        euro = tokenizer("€", add_special_tokens=False).input_ids
        for ids in ([257, *euro, euro[0], 258], [257, euro[0]], [257, 255, 258, 257]):
            text, pieces = pieces_of(ids, tokenizer)
            assert "\ufffd" in text
            assert joined(pieces) == text

    def test_random_bytes_and_stops(self) -> None:
        generator = random.Random(0)
        for _ in range(300):
            ids = [generator.randrange(3, BASE.vocabulary_size) for _ in range(generator.randrange(1, 30))]
            whole = BASE.tokenizer.decode(ids, skip_special_tokens=True)
            start = generator.randrange(len(whole) + 1)
            some = (whole[start : start + generator.randrange(1, 5)], "the", "a a")
            # half a character looks like this one until its other half is there
            stop = tuple(one for one in some if one and "\ufffd" not in one)
            text, pieces = pieces_of(ids, BASE.tokenizer, stop)
            assert joined(pieces) == text == min((whole.partition(one)[0] for one in stop), key=len)
            assert pieces[-1].finish == ("stop" if any(one in whole for one in stop) else "length")

    @pytest.mark.parametrize(
        ("text", "stops", "count"),
        [
            ("film EN", ("END",), 2),
            ("film END", ("END",), 0),
            ("aab", ("aabc", "bc"), 3),
            ("", ("a",), 0),
            ("a", (), 0),
        ],
    )
    def test_what_a_stop_may_begin_with(self, text: str, stops: tuple[str, ...], count: int) -> None:
        assert measure_partial(text, stops) == count

    def test_what_may_have_begun_is_looked_for_in_the_text_only(self) -> None:
        """However long a stop string is: this would take minutes otherwise."""
        assert measure_partial("a good film ab", ["b" + "c" * 10**6]) == 1

    def test_a_tokenizer_that_takes_spaces_away_again(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.clean_up_tokenization_spaces = True
        ids = tokenizer("a b ' b a n't b . a", add_special_tokens=False).input_ids
        text, pieces = pieces_of(ids, tokenizer)
        assert joined(pieces) == text == tokenizer.decode(ids)


def test_marks_that_are_shown_are_part_of_what_is_told() -> None:
    begin = BASE.tokenizer.bos_token_id
    ids = [begin, *BASE.tokenizer("a film", add_special_tokens=False).input_ids]
    for shown, text in (((), "a film"), (("<bos>",), "<bos>a film")):
        completion = Completion(BASE, GenerationConfig(len(ids), shown_marks=shown))
        for one in ids:
            completion.add(one)
        scored = [ScoredToken(one, -1.0) for one in ids]
        chunk = Detokenizer(completion, BASE.tokenizer, InputUsage(1, False), scored).next_chunk()
        assert chunk is not None
        assert chunk.text == text
        assert b"".join(one.token for one in chunk.logprobs if not one.mark).decode() == text
        assert len(chunk.logprobs) == len(ids)


def served(number: int, length: int = 4) -> ServedPrompt:
    return ServedPrompt(f"prompt@{number}", TWO, (tokens(BASE, length, number),))


def size(length: int) -> int:
    """Bytes of keys and values: two layers of two heads of eight numbers, BOS among the tokens."""
    return 2 * 2 * 2 * 8 * 4 * (length + 1)


class TestPrefixes:
    def test_one_is_computed_once(self) -> None:
        with torch.no_grad():
            prefixes = PrefixCache(BASE, 10**6)
            for _ in range(3):
                assert prefixes.prepare([served(0), served(1)]) == {}
                _, places = prefixes.join([served(1), served(0)])
        assert places == {"prompt@0": 0, "prompt@1": 1}
        assert (prefixes.hits, prefixes.misses, len(prefixes)) == (4, 2, 2)
        assert prefixes.bytes == 2 * size(4)

    def test_the_one_that_was_not_used_for_longest_goes(self) -> None:
        with torch.no_grad():
            prefixes = PrefixCache(BASE, 3 * size(4))
            for number in (0, 1, 2, 0, 3, 0, 1):
                prefixes.prepare([served(number)])
                prefixes.join([served(number)])
                assert prefixes.bytes <= 3 * size(4)
        # 1 went when 3 came, and 2 when 1 came back
        assert (prefixes.hits, prefixes.misses, len(prefixes)) == (2, 5, 3)

    @pytest.mark.parametrize("family", ["llama", "gemma2", "mamba", "t5"])
    def test_what_a_batch_needs_stays_and_is_right(self, family: str) -> None:
        base = tiny_base(family)
        some = [ServedPrompt(f"prompt@{number}", TWO, (tokens(base, 3, number),)) for number in range(6)]

        async def main() -> None:
            async with InferenceEngine(base, EngineLimits(prefix_bytes=1)) as engine:
                for number in range(5):
                    asked = [some[number], some[number + 1]]
                    found = await asyncio.gather(*(engine.classify(one, examples_of("a film")) for one in asked))
                    for one, answer in zip(asked, found, strict=True):
                        assert_same(answer, alone(base, one, examples_of("a film")))
                    await engine.classify(some[0], examples_of("a film"))
                    assert engine.snapshot().prefix_entries <= 2
                # one more batch lets go of what the last one needed
                await engine.classify(ServedPrompt("bare", TWO, ()), examples_of("a film"))
                assert engine.snapshot().prefix_entries == 1

        asyncio.run(main())

    def test_all_templates_without_a_prompt_share_one(self) -> None:
        with torch.no_grad():
            prefixes = PrefixCache(BASE, 10**6)
            _, places = prefixes.join([ServedPrompt("a", TWO, ()), ServedPrompt("b", MANY, ()), served(1)])
        assert places == {"a": 0, "b": 0, "prompt@1": 1}
        assert len(prefixes) == 2


class TestSpecialTokens:
    def test_text_never_becomes_one(self) -> None:
        special = set(BASE.tokenizer.all_special_ids)
        text = Example("<bos> a <eos><pad>film</s>")
        preparing = RequestPreparer(BASE, 1000)
        # what another thread may do meanwhile
        BASE.tokenizer("<bos>", split_special_tokens=False)
        assert BASE.tokenizer("<bos>").input_ids.count(BASE.tokenizer.bos_token_id) == 2
        asking, (ids,), _ = preparing.encode_examples(LABELS, [text])
        items = asking.items(ids, range(asking.count))
        for item in (*items, preparing.encode_text(TEXTS, text, 5).item):
            assert len(item.ids) > 12
            assert not special & set(item.ids)

    def test_it_is_answered_as_the_words_it_is(self) -> None:
        text = Example("<bos><eos> film")

        async def main() -> None:
            async with InferenceEngine(BASE) as engine:
                assert_same(await engine.classify(LABELS, [text]), alone(BASE, LABELS, [text]))
                pieces = await collected(engine.generate(TEXTS, text, GenerationConfig(8)))
                assert said(pieces) == completed(BASE, TEXTS, text, GenerationConfig(8))
                assert pieces[0].read.tokens == 4 + len(
                    RequestPreparer(BASE, 1000).encode_text(TEXTS, text, 8).item.ids
                )

        asyncio.run(main())


class TestBatches:
    def test_what_waits_goes_into_one_batch_and_is_counted_by_task(self) -> None:
        async def main() -> None:
            held, film = Held(), examples_of("a film")
            async with InferenceEngine(BASE, observer=held) as engine:
                first = await held.busy(engine, LABELS)
                waits = [asyncio.create_task(engine.classify(served(number), film)) for number in range(5)]
                await until(lambda: engine._queue.ready == 5)
                held.go.set()
                await asyncio.gather(first, *waits)
            asking, (ids,), _ = RequestPreparer(BASE, 1000).encode_examples(served(0), film)
            count = sum(len(item.ids) for item in asking.items(ids, range(asking.count)))
            assert held.batches[1].what == "label"
            assert held.batches[1].tokens == {f"prompt@{number}": count for number in range(5)}

        asyncio.run(main())

    def test_labels_do_not_wait_for_completions_and_texts_join_those_that_grow(self) -> None:
        async def main() -> None:
            held, text = Held(), lasting(BASE, TEXTS, 100)
            async with InferenceEngine(BASE, observer=held) as engine:
                long = asyncio.create_task(collected(engine.generate(TEXTS, text, GenerationConfig(100))))
                await until(lambda: engine.snapshot().tokens_made > 5)
                await held.hold()
                labels = asyncio.create_task(engine.classify(LABELS, examples_of("a film")))
                short = asyncio.create_task(
                    collected(engine.generate(TEXTS, examples_of("the")[0], GenerationConfig(3)))
                )
                await until(lambda: engine.snapshot().waiting == 2)
                held.go.set()
                await labels
                assert not long.done()
                assert said(await short) == completed(BASE, TEXTS, examples_of("the")[0], GenerationConfig(3))
                assert not long.done()
                assert said(await long) == completed(BASE, TEXTS, text, GenerationConfig(100))
            rows = [batch.rows for batch in held.batches if batch.what == "grow"]
            assert Counter(rows)[2] in (2, 3)
            assert Counter(rows)[1] > 90

        asyncio.run(main())

    def test_an_observer_that_fails_changes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing:
            def record_batch(self, batch: BatchStats) -> None:
                raise ValueError("no disk")

        async def main() -> None:
            async with InferenceEngine(BASE, observer=Failing()) as engine:
                assert_same(await engine.classify(LABELS, examples_of("a")), alone(BASE, LABELS, examples_of("a")))

        asyncio.run(main())
        assert "an observer failed" in caplog.text

    def test_what_is_asked_of_the_wrong_prompt(self) -> None:
        async def main() -> None:
            async with InferenceEngine(BASE) as engine:
                assert await engine.classify(LABELS, []) == []
                with pytest.raises(DataError, match="'texts@1' has no labels to choose from"):
                    await engine.classify(TEXTS, examples_of("a"))
                voting = ServedPrompt("voting@1", TWO, LABELS.states * 2)
                with pytest.raises(DataError, match="several prompts that vote on a label: expected one"):
                    await collected(engine.generate(voting, examples_of("a")[0], GenerationConfig(2)))
                # words can follow whatever the task is
                pieces = await collected(engine.generate(LABELS, examples_of("a")[0], GenerationConfig(2)))
                assert said(pieces) == completed(BASE, LABELS, examples_of("a")[0], GenerationConfig(2))

        asyncio.run(main())


def test_memory_stays_as_it_is() -> None:
    """After many requests of new prompts, some of them cancelled, there are as many objects as before."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor | PromptState | Completion) for one in gc.get_objects())

    async def many(engine: InferenceEngine, start: int) -> None:
        generator = random.Random(start)
        kinds = prompts(BASE)
        for number in range(start, start + 60):
            kind = generator.choice(kinds)
            one = ServedPrompt(f"{kind.key}/{number}", kind.spec, kind.states)
            if kind.spec.kind == "classification":
                task = asyncio.create_task(engine.classify(one, examples(generator, 2)))
            else:
                task = asyncio.create_task(
                    collected(engine.generate(one, examples(generator, 1)[0], GenerationConfig(4)))
                )
            if number % 5 == 0:
                await asyncio.sleep(0.003)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def main() -> None:
        async with InferenceEngine(BASE, EngineLimits(prefix_bytes=3 * size(14))) as engine:
            texts = engine._preparing
            texts._objectives._most = texts._labelling._most = texts._generating._most = 8
            await many(engine, 0)
            before = tensors()
            for start in (100, 200, 300):
                await many(engine, start)
            assert abs(tensors() - before) < 40
            assert engine.snapshot().prefix_bytes <= 3 * size(14) * 2

    asyncio.run(main())
