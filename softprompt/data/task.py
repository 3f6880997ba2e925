"""Task: examples, template, labels and metric; TaskSpec is the part that a saved prompt keeps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from softprompt.config import TaskKind
from softprompt.data.chats.chat_format import OWN_TEMPLATE, ChatFormat, LearnedTurns, PlacementName
from softprompt.data.examples import Columns, Example, infer_kind, keep_answered
from softprompt.data.label_names import check_label_names, check_labels, check_verbalizers, suggest_label
from softprompt.data.readers.in_memory import DataSource
from softprompt.data.splits import Splits, read_splits
from softprompt.data.task_manifest import SavedTask, validate_saved
from softprompt.data.templates.template import Template, reader_options
from softprompt.errors import ConfigError, DataError, PromptFileError, TemplateError, printable
from softprompt.metrics.registry import check_metric_name, choose_metric
from softprompt.metrics.user_metrics import import_metric
from softprompt.utils.arguments import check_arguments
from softprompt.utils.messages import quote_names
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize

CLASSIFICATION_TEMPLATE = "{{ text }}\nLabel:"
GENERATION_TEMPLATE = "{{ text }}\nOutput:"

# what a task may have, for it also comes with somebody else's prompt: every text is asked about all of its labels
LABELS = 2_000
LABEL_CHARACTERS = 500  # of a label, and of its words
LABELS_CHARACTERS = 100_000  # of all labels' words
LONGEST = 2**31  # tokens
MAX_LENGTH, MAX_CHAT_LENGTH = 512, 2048  # tokens of template and text, if nobody says otherwise


@dataclass(frozen=True)
class TaskSpec(Displayed):
    """What a prompt was learned for, without the examples.

    Attributes:
        kind: classification or generation.
        template: the Jinja2 source.
        labels: names of the classes as they stand in the data; empty for generation.
        verbalizers: the words the model sees for each label, in the same order.
        max_length: tokens of template and text, at most.
        metric: what answers are judged by first, a name or a function's ``package.module:function``; ``None``: what
            suits the kind and the references (see ``metrics.registry``).
        columns: what the data calls its columns of text, label and output.
        max_new_tokens: room of a completion; ``None``: what ``generate.choose_max_new_tokens`` gives.
        chat: how its conversations are written, for a model with a chat template, where rows of text are what a user
            says; ``None``: the template makes the whole text. ``chat_resolution`` decides it for a model.
    """

    kind: TaskKind
    template: str
    labels: tuple[str, ...] = ()
    verbalizers: tuple[str, ...] = ()
    max_length: int = 512
    metric: str | None = None
    columns: Columns = Columns()  # noqa: RUF009 (immutable)
    max_new_tokens: int | None = None
    chat: ChatFormat | None = None

    def __repr__(self) -> str:
        facts = {"labels": self.labels, "template": self.template, "metric": self.metric, "max_length": self.max_length}
        chat = None if self.chat is None else str(self.chat)
        return summarize(self, self.kind, **facts, max_new_tokens=self.max_new_tokens, chat=chat)

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric_name(self.kind, self.metric)
        if not 1 <= self.max_length < LONGEST:
            raise DataError(f"expected a maximal length of 1 to {LONGEST - 1:,} tokens, got {self.max_length}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.kind == "generation":
            if self.labels or self.verbalizers:
                raise DataError("generation has no labels and verbalizers: leave them out")
            return
        self._check_sizes()
        if len(self.labels) < 2:
            only = f"only '{self.labels[0]}'" if self.labels else "none"
            raise DataError(f"classification needs at least two labels, got {only}: add examples of another class")
        if len(set(self.labels)) < len(self.labels):
            raise DataError(f"labels must differ, got {', '.join(self.labels)}")
        if len(self.verbalizers) != len(self.labels):
            raise DataError(
                f"expected one verbalizer for each of {len(self.labels)} labels, got {len(self.verbalizers)}"
            )
        if blank := [label for label, words in zip(self.labels, self.verbalizers, strict=True) if not words.strip()]:
            raise DataError(f"label '{blank[0]}' has a blank verbalizer: give the words that the model should answer")

    def _check_sizes(self) -> None:
        if len(self.labels) > LABELS:
            raise DataError(
                f"expected at most {LABELS:,} labels, got {len(self.labels):,}: is the column of labels the right one? "
                "Words of their own are for generation (a column 'target')"
            )
        long = next((one for one in (*self.labels, *self.verbalizers) if len(one) > LABEL_CHARACTERS), None)
        if long is not None:
            raise DataError(
                f"expected at most {LABEL_CHARACTERS} characters in a label and in its verbalizer, got {len(long):,} "
                f"in '{printable(long, 80)}': give it a short name"
            )
        if (size := sum(map(len, self.verbalizers))) > LABELS_CHARACTERS:
            raise DataError(
                f"expected at most {LABELS_CHARACTERS:,} characters in all verbalizers together, got {size:,}: give "
                "the labels shorter verbalizers"
            )

    @classmethod
    def of(
        cls,
        *,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        verbalizers: Mapping[str, str] | None = None,
        max_length: int = 512,
        metric: str | None = None,
        columns: Columns | None = None,
    ) -> Self:
        """Classification with these labels, generation without; what is not given is as for ``Task``.

        Raises:
            DataError: fewer than two labels, or a verbalizer for none of them.
            ConfigError: a metric that there is not for this kind.
            TemplateError: a template that cannot be used.
        """
        names, words = check_labels(labels), check_verbalizers(verbalizers)
        if unknown := sorted(set(words) - set(names)):
            known = f"labels are {', '.join(names)}" if names else "there are no labels"
            raise DataError(f"verbalizer for unknown label '{unknown[0]}': {known}")
        default = GENERATION_TEMPLATE if labels is None else CLASSIFICATION_TEMPLATE
        spec = cls(
            "generation" if labels is None else "classification",
            default if template is None else template,
            names,
            tuple(words.get(name, name) for name in names),
            max_length,
            import_metric(metric),
            (columns or Columns()).names(),
        )
        spec.compiled  # noqa: B018 (a template that does not compile is found here, not at the first example)
        return spec

    @property
    def as_generation(self) -> "TaskSpec":
        """The same texts, answered by words of any kind in place of a label."""
        return replace(self, kind="generation", labels=(), verbalizers=(), metric=None)

    @property
    def as_plain(self) -> "TaskSpec":
        """The same task without turns: words around each text, as solved examples have them in a prompt's start."""
        if self.chat is None:
            return self
        usual = CLASSIFICATION_TEMPLATE if self.kind == "classification" else GENERATION_TEMPLATE
        template = usual if self.template == "{{ text }}" else f"{self.template}{usual.removeprefix('{{ text }}')}"
        return replace(self, template=template, chat=None)

    @property
    def without_prompt(self) -> "TaskSpec":
        """The same task without virtual tokens: a system turn is there only where it says something."""
        if self.chat is None or self.chat.placement == "first":
            return self
        return replace(self, chat=replace(self.chat, placement="first"))

    @cached_property
    def compiled(self) -> Template:
        return Template(self.template, self.columns.text)

    @property
    def answer_separator(self) -> str:
        """A space before the answer, unless the template ends in white space already, or a turn begins there."""
        return "" if self.chat is not None or self.template[-1:].isspace() else " "

    @property
    def row_columns(self) -> Columns:
        """What the columns of a row to be answered are called, and whether it needs a text."""
        names = self.compiled.names
        return self.columns._replace(text_optional="text" not in names, read=names)

    @cached_property
    def label_index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "template": self.template,
            "labels": list(self.labels),
            "verbalizers": list(self.verbalizers),
            "max_length": self.max_length,
            **({} if self.metric is None else {"metric": self.metric}),
            **({"columns": others} if (others := self.columns.others()) else {}),
            **({} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}),
            **({} if self.chat is None else {"chat": self.chat.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back ``to_dict``'s result.

        Raises:
            PromptFileError: keys or types are not those of a task.
        """
        try:
            saved = validate_saved(SavedTask, values)
            columns = Columns(**saved.columns).names()
            if not all(isinstance(name, str) for name in columns[:3]):
                raise ValueError(f"columns: expected names, got {saved.columns}")
        except (ValueError, TypeError) as error:
            raise PromptFileError(f"the saved task is of another form: {error}") from error
        try:
            words = tuple(saved.labels), tuple(saved.verbalizers)
            chat = None if saved.chat is None else ChatFormat.from_dict(saved.chat)
            spec = cls(
                saved.kind, saved.template, *words, saved.max_length, saved.metric, columns, saved.max_new_tokens, chat
            )
            spec.compiled  # noqa: B018 (a template that does not compile is found here, not at the first example)
        except (ConfigError, DataError, TemplateError) as error:
            raise PromptFileError(f"the saved task cannot be used: {error}") from error
        return spec


def choose_max_length(splits: Splits) -> int:
    """Tokens of a text that are read, where nobody says how many: conversations are longer."""
    rows = splits.train or splits.validation or splits.test
    return MAX_LENGTH if not rows or rows[0].conversation is None else MAX_CHAT_LENGTH


@dataclass(frozen=True)
class Task(Displayed):
    """A TaskSpec with its examples. Build one with ``Task.classification``, ``Task.generation`` or ``Task.of``."""

    spec: TaskSpec
    splits: Splits
    name: str = field(default="task")
    chat: ChatFormat | None = None  # how rows are written for a model with a chat template; ``None``: it is decided

    def __repr__(self) -> str:
        sizes = {split: len(getattr(self.splits, split)) for split in ("train", "validation", "test")}
        streamed = True if self.splits.stream is not None else None
        facts = {"labels": self.spec.labels, "template": self.spec.template, "metric": self.spec.metric}
        return summarize(self, describe_value(self.name), self.spec.kind, **sizes, streamed=streamed, **facts)

    def with_room(self, max_new_tokens: int | None) -> "Task":
        """With so much room for completions, if it is given; raises ConfigError."""
        room = self.spec.max_new_tokens if max_new_tokens is None else max_new_tokens
        return replace(self, spec=replace(self.spec, max_new_tokens=room))

    @property
    def train(self) -> tuple[Example, ...]:
        return self.splits.train

    @property
    def validation(self) -> tuple[Example, ...]:
        return self.splits.validation

    @property
    def test(self) -> tuple[Example, ...]:
        return self.splits.test

    @classmethod
    @check_arguments
    def of(
        cls,
        source: "DataSource | Splits | Task",
        *,
        kind: TaskKind | None = None,
        spec: TaskSpec | None = None,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        verbalizers: Mapping[str, str] | None = None,
        max_length: int | None = None,
        metric: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        learn: LearnedTurns = "all",
        placement: PlacementName = "system-start",
        unlabelled: bool = False,
        **options: Any,
    ) -> Self:
        """A task of the kind that the columns of ``source`` show.

        Args:
            source: what ``sp.read_splits`` reads: a place, a DataFrame, an Arrow table, a ``datasets.Dataset``, a list
                of dicts, a mapping of split names to any of these; or splits already read, or a task of these.
            kind: that it must be, if given.
            spec: of the task, where it is known already; the arguments down to ``metric`` then play no role.
            labels: class names in the order wanted; those of the training examples, sorted, if not given.
            verbalizers: words for some or all labels; a label's own name for the others.
            max_length: tokens of template and text, at most: 512, or 2,048 of conversations.
            system: for a model with a chat template, the written system prompt beside the virtual tokens.
            chat_template: in place of the model's own, its Jinja2 source; ``"none"``: the plain template whatever the
                model has.
            chat_template_args: what the chat template is given by name, as ``{"enable_thinking": False}``.
            learn: which of the assistant's turns are learned, ``all`` or the ``last``.
            placement: where the virtual tokens stand, see ``ChatFormat``.
            metric: what it is judged by first, a name or ``package.module:function``. Without one it is accuracy, or
                what the references ask for (see ``metrics.registry``), which the notes then say.
            unlabelled: rows may come without label and output: inputs, to learn from a teacher.
            options: of the reader, as ``text_column=`` (see ``config.DataOptions``).

        Raises:
            DataError: no examples, one class only, rows of another kind, a label that is not among ``labels``.
            ConfigError: a metric that there is not for this kind.
            TemplateError: a template that cannot be used.
        """
        splits = source.splits if isinstance(source, Task) else source
        if not isinstance(splits, Splits):
            known = None if spec is None else spec.columns
            shown, text = (template, options.get("text_column")) if spec is None else (spec.template, spec.columns.text)
            read = {**reader_options(shown, text), **options}
            splits = read_splits(splits, remembered=known, unlabelled=unlabelled, **read)
        answered = keep_answered(splits["all"]) if unlabelled else splits["all"]
        found = infer_kind(answered) if answered else "classification" if labels is not None else "generation"
        if spec is not None:
            if answered and found != spec.kind:
                who = "teacher" if unlabelled else "prompt"
                raise DataError(f"{splits.source}: the {who} was learned for {spec.kind}, these rows are for {found}")
            return cls._build(spec, splits, "correct the rows" + (", or name all labels" if unlabelled else ""))
        if kind not in (None, found):
            expected = "a label" if kind == "classification" else "target or references"
            got = f"{found} rows" + (" (target or references)" if found == "generation" else "")
            raise DataError(f"{splits.source}: expected rows with {expected}, got {got}")
        if found == "generation" and (labels is not None or (verbalizers and not unlabelled)):
            raise DataError(f"{splits.source}: labels were given, but its rows are for generation")
        if found == "classification" and labels is None:
            rows = answered if unlabelled else splits.train or answered
            labels = sorted({one.label for one in rows if one.label is not None})
            notes = check_label_names(labels, len(answered), splits.source)
            splits = replace(splits, notes=(*splits.notes, *notes))
        limit, own = max_length or choose_max_length(splits), OWN_TEMPLATE if chat_template is None else chat_template
        words: dict[str, Any] = {"labels": labels, "template": template, "verbalizers": verbalizers, "metric": metric}
        spec = TaskSpec.of(**words, max_length=limit, columns=splits.columns)
        task = cls._build(*_with_chosen_metric(spec, splits), "correct the rows, or name all labels")
        chat = ChatFormat(own, dict(chat_template_args or {}), system, placement=placement, learn=learn)
        return replace(task, chat=chat)

    @classmethod
    def classification(cls, source: DataSource | Splits, **options: Any) -> Self:
        """A task whose rows have a label; ``options`` and errors as for ``of``."""
        return cls.of(source, kind="classification", **options)

    @classmethod
    def generation(cls, source: DataSource | Splits, **options: Any) -> Self:
        """A task whose rows have a target or references; ``options`` and errors as for ``of``."""
        return cls.of(source, kind="generation", **options)

    @classmethod
    def matching(cls, spec: TaskSpec, source: DataSource | Splits, **options: Any) -> Self:
        """Other data for a task that is known already, as ``eval`` needs it; ``options`` of the reader."""
        return cls.of(source, spec=spec, **options)

    @classmethod
    def of_inputs(cls, source: DataSource | Splits, **options: Any) -> Self:
        """A task whose rows may come without label and output; generation where neither they nor labels tell."""
        return cls.of(source, unlabelled=True, **options)

    @classmethod
    def _build(cls, spec: TaskSpec, splits: Splits, advice: str) -> Self:
        known = spec.label_index
        for split_name in ("train", "validation", "test") if spec.labels else ():
            examples: tuple[Example, ...] = getattr(splits, split_name)
            labels = (example.label for example in examples if example.label is not None)
            unknown = Counter(label for label in labels if label not in known)
            if unknown:
                label, count = unknown.most_common(1)[0]
                raise DataError(
                    f"{splits.source}: the {split_name} split has label '{label}' ({count} rows), "
                    f"which is not among the labels {', '.join(spec.labels)}{suggest_label(label, spec.labels)}: "
                    f"{advice}"
                )
        first = next(iter(splits.train or splits.validation or splits.test), None)
        if first is not None:
            spec.compiled.render(first)
            if "text" not in spec.compiled.names and first.text.strip():
                text, read = (splits.columns or Columns()).text, quote_names(sorted(spec.compiled.names))
                note = f"the template does not use {{{{ text }}}}, the column '{text}': the model reads {read} only"
                splits = replace(splits, notes=(*splits.notes, note))
        return cls(spec, splits, Path(splits.source).stem or "task")


def _with_chosen_metric(spec: TaskSpec, splits: Splits) -> tuple[TaskSpec, Splits]:
    """With the metric that the references ask for, where none was chosen, and a note that says so."""
    references = [one.references for one in keep_answered(splits.train + splits.validation + splits.test)]
    if spec.metric is not None or spec.kind == "classification" or not references:
        return spec, splits
    scorer = choose_metric(spec.kind, None, references)
    return replace(spec, metric=scorer.name), replace(splits, notes=(*splits.notes, scorer.note))
