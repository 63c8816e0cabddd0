"""The pieces of a conversation as a model's own chat template writes them.

A template is rendered once with marked questions and answers and cut at the marks, so no family's tokens are written
here. What stands before the first question is the prefix, which many questions may share:

    <s><image>                                                            | <user>Q<assistant>  | A</s>
    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n<|image|> | Q<|eot_id|>…\\n\\n    | A<|eot_id|>
    USER: <image>\\n                                                       | Q ASSISTANT:        |  A</s>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.params import UserError

if TYPE_CHECKING:
    from components.models.families import Family

# Llama 3.1 and 3.2 write today's date into the system turn: a training run must not depend on its day.
DATE = "26 Jul 2024"
IMAGE_TOKENS = ("<image>", "<|image|>")
CACHED_TEXTS = 200_000
_Q, _A = ("questionmarkone", "questionmarktwo"), ("answermarkone", "answermarktwo")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Text around question and answer. A first turn is `head + question + tail + answer_head + answer + stop`; a later
    turn starts with `follow_head` in place of the prefix and `head`."""

    head: str
    tail: str
    answer_head: str
    stop: str
    follow_head: str


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; a text model's processor is its tokenizer."""
    inner = getattr(processor, "tokenizer", None)
    return processor if inner is None else inner


class Chat:
    """Renders and cuts the chat template of a processor or tokenizer."""

    def __init__(self, processor: Any) -> None:
        """Raises:
        UserError: no template, or one whose turns cannot be told apart.
        """
        self.processor, self.tokenizer = processor, tokenizer_of(processor)
        if not getattr(processor, "chat_template", None):
            raise UserError(
                f"model.base: its {type(processor).__name__} has no chat template; take an instruction-tuned model, or "
                "save one with the processor (processor.chat_template = …)"
            )
        self.special = _special_tokens(self.tokenizer)
        self.image_token: str | None = None
        self.image_token = self._image_token()
        self._whole: dict[str, tuple[int, ...]] = {}
        prefix, self.pieces = self._cut(0 if self.image_token is None else 1)
        self._prefixes = {0 if self.image_token is None else 1: prefix}

    def prefix(self, images: int) -> str:
        """What stands before the first question of a conversation about `images` images.

        Raises:
            UserError: the template has no place for images, or writes such a conversation's turns otherwise.
        """
        if images and self.image_token is None:
            raise UserError(f"{images} image(s) were given, but the base's chat template has no place for images")
        if images not in self._prefixes:
            prefix, pieces = self._cut(images)
            if pieces != self.pieces:
                raise UserError(
                    f"the base's chat template writes a conversation about {images} image(s) otherwise than one about "
                    "a single image; put only rows with images together"
                )
            self._prefixes[images] = prefix
        return self._prefixes[images]

    def prefix_ids(self, images: int, tokens_per_image: int) -> list[int]:
        """Token ids of the prefix, with `tokens_per_image` placeholders for each image."""
        text = self.prefix(images)
        if self.image_token is not None and tokens_per_image != 1:
            text = text.replace(self.image_token, self.image_token * tokens_per_image)
        return [*self.start_ids(text), *self.ids(text)]

    def start_ids(self, text: str) -> list[int]:
        """The begin-of-text token where the tokenizer adds one and the template does not write it."""
        bos = self.tokenizer.bos_token
        if bos is None or text.startswith(bos):
            return []
        return [self.tokenizer.bos_token_id] if self._adds_bos() else []

    def prompt(self, question: str, images: int) -> str:
        """The whole text of a first question, ready for the processor."""
        return self.prefix(images) + self.pieces.head + question + self.pieces.tail

    @property
    def stop_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.ids(self.pieces.stop)[-1]

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that may hold special tokens; nothing is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_after(self, before: str, text: str) -> tuple[int, ...]:
        """Token ids of `text` as it stands behind `before`: some tokenizers write a word otherwise after a space."""
        if before not in self._whole:
            self._whole[before] = self.ids(before) if before else ()
        lead = self._whole[before]
        whole = self.ids(before + text)
        return whole[len(lead) :] if whole[: len(lead)] == lead else self.ids(text)

    def since_special(self, text: str) -> str:
        """The end of `text` from its last special token on: all that its next token can depend on."""
        at = max((text.rfind(token) for token in self.special), default=-1)
        return text if at < 0 else text[at:]

    def refuse_special(self, text: str) -> None:
        """Raises:
        UserError: `text` spells a special token, which would end its turn or stand for an image.
        """
        for token in self.special:
            if token in text:
                raise UserError(f"text {_shown(text)!r} holds the special token {token!r} of the base; take it out")

    def messages(self, turns: Sequence[tuple[str, str | None]], images: int) -> list[dict[str, Any]]:
        """A conversation as `apply_chat_template` takes it; an answer of None is still to come."""
        listed = images > 0 or self.image_token is not None or hasattr(self.processor, "image_processor")
        found: list[dict[str, Any]] = []
        for number, (question, answer) in enumerate(turns):
            content: Any = question
            if listed:
                shown = [{"type": "image"}] * (images if number == 0 else 0)
                content = [*shown, {"type": "text", "text": question}]
            found.append({"role": "user", "content": content})
            if answer is not None:
                found.append({"role": "assistant", "content": [{"type": "text", "text": answer}] if listed else answer})
        return found

    def render(self, turns: Sequence[tuple[str, str | None]], images: int) -> str:
        """The conversation's text, by the template; ends where the model goes on when the last answer is None."""
        from jinja2 import TemplateError

        messages = self.messages(turns, images)
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=None if self.processor is self.tokenizer else self.processor.chat_template,
                tokenize=False,
                add_generation_prompt=turns[-1][1] is None,
                date_string=DATE,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(f"model.base: its chat template cannot write a conversation: {error}") from error
        return str(text)

    def _image_token(self) -> str | None:
        named = getattr(self.processor, "image_token", None) or getattr(self.tokenizer, "image_token", None)
        for token in dict.fromkeys(name for name in (named, *IMAGE_TOKENS) if name in self.special):
            try:
                if self.render([(_Q[0], None)], images=1).count(str(token)) == 1:
                    return str(token)
            except UserError:  # a text template that takes no list of parts
                continue
        if hasattr(self.processor, "image_processor"):
            raise UserError(
                "model.base: its chat template writes no image placeholder "
                f"({named or ' or '.join(IMAGE_TOKENS)}) for a turn with an image; the page would not be seen"
            )
        return None

    def _cut(self, images: int) -> tuple[str, Pieces]:
        text = self.render([(_Q[0], _A[0]), (_Q[1], _A[1])], images)
        marks = (_Q[0], _A[0], _Q[1], _A[1])
        if re.findall("|".join(marks), text) != list(marks):
            raise UserError(f"model.base: its chat template drops, repeats or reorders turns: {_shown(text)!r}")
        before, middle, between, middle_again, end = re.split("|".join(marks), text)
        prompt = self.render([(_Q[0], None)], images)
        tail = prompt[len(before) + len(_Q[0]) :]
        if middle != middle_again or not prompt.startswith(before + _Q[0]) or not middle.startswith(tail):
            raise UserError(
                "model.base: its chat template ends a question otherwise before an answer than in a finished turn: "
                f"{_shown(tail)!r} and {_shown(middle)!r}"
            )
        stop, rest = self._stop(end, between)
        prefix, head = self._split(before, images)
        return prefix, Pieces(head, tail, middle[len(tail) :], stop, rest)

    def _split(self, before: str, images: int) -> tuple[str, str]:
        """Prefix and what belongs to the question: from the first special token after the last image on.

        A space stays with the word behind it, as tokenizers have it.
        """
        at = len(before)
        if images and self.image_token is not None:
            if before.count(self.image_token) != images:
                raise UserError(
                    f"model.base: its chat template writes {before.count(self.image_token)} image placeholder(s) for "
                    f"{images} image(s) before the question"
                )
            last = before.rindex(self.image_token) + len(self.image_token)
            at = min([last + before[last:].find(t) for t in self.special if t in before[last:]], default=len(before))
        elif self.image_token is not None:
            head = self.pieces.head
            at = len(before) - len(head) if before.endswith(head) else len(before)
        while at and before[at - 1] == " ":
            at -= 1
        return before[:at], before[at:]

    def _stop(self, end: str, between: str) -> tuple[str, str]:
        """What ends an answer, and what stands between it and the next question."""
        eos = str(self.tokenizer.eos_token)
        first = min([(end.find(t), -len(t), t) for t in self.special if t in end], default=None)
        if first is None:  # Vicuna's template: LLaVA trains on the end-of-text token there
            return eos, between.removeprefix(end)
        stop = end[: first[0]] + first[2]
        if not between.startswith(stop):
            raise UserError(
                f"model.base: its chat template ends the last answer by {_shown(end)!r}, others by {_shown(between)!r}"
            )
        return stop, between.removeprefix(stop)

    def _adds_bos(self) -> bool:
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id


class BlockEncoder:
    """Turns texts into `Block`s by the base's own chat template, each distinct text only once."""

    def __init__(self, processor: Any) -> None:
        """`processor` of a base, or a tokenizer that carries the chat template itself."""
        self.chat = Chat(processor)
        pieces = self.chat.pieces
        before = self.chat.prefix(0 if self.chat.image_token is None else 1)
        self._before_question = self.chat.since_special(before)
        self._before_answer = self.chat.since_special(pieces.tail)
        self._questions: dict[str, tuple[int, ...]] = {}
        self._answers: dict[str, tuple[int, ...]] = {}
        self._later: dict[str, tuple[int, ...]] = {}

    def __call__(self, question: str, answer: str | None = None) -> Block:
        """One turn; without an answer, the question as the model is asked it."""
        return Block(self._question(question), () if answer is None else self._answer(answer))

    def turns(self, turns: Sequence[tuple[str, str | None]]) -> Block:
        """A conversation of several turns; only the last answer may be None.

        Raises:
            UserError: no turn, or an answer missing before the last turn.
        """
        if not turns or any(answer is None for _, answer in turns[:-1]):
            raise UserError(f"a conversation of {len(turns)} turn(s) lacks an answer before its last question")
        blocks = [
            Block(
                self._question(question) if number == 0 else self._follow(question),
                () if answer is None else self._answer(answer),
            )
            for number, (question, answer) in enumerate(turns)
        ]
        return Block(blocks[-1].question, blocks[-1].answer, tuple(blocks[:-1]))

    def first_token(self, answer: str) -> int:
        """Id of an answer's first token: what P(answer) is read from."""
        return self._answer(answer)[0]

    def _question(self, text: str) -> tuple[int, ...]:
        pieces = self.chat.pieces
        return self._cached(self._questions, text, self._before_question, pieces.head, pieces.tail)

    def _answer(self, text: str) -> tuple[int, ...]:
        pieces = self.chat.pieces
        return self._cached(self._answers, text, self._before_answer, pieces.answer_head, pieces.stop)

    def _follow(self, text: str) -> tuple[int, ...]:
        pieces = self.chat.pieces
        return self._cached(self._later, text, self.chat.since_special(pieces.stop), pieces.follow_head, pieces.tail)

    def _cached(
        self, cache: dict[str, tuple[int, ...]], text: str, before: str, head: str, tail: str
    ) -> tuple[int, ...]:
        if text not in cache:
            self.chat.refuse_special(text)
            if len(cache) >= CACHED_TEXTS:
                cache.clear()
            cache[text] = self.chat.ids_after(before, head + text.strip() + tail)
        return cache[text]


@dataclass(frozen=True, slots=True)
class Block:
    """Token ids of a question and its answer, which is empty when asking; `earlier` are the turns before it."""

    question: tuple[int, ...]
    answer: tuple[int, ...] = ()
    earlier: tuple[Block, ...] = ()

    @property
    def turns(self) -> tuple[Block, ...]:
        """The conversation's turns, this one last."""
        return (*self.earlier, self)

    def __len__(self) -> int:
        return sum(len(turn.question) + len(turn.answer) for turn in self.turns)


def check_chat(processor: Any, family: Family) -> None:
    """See before a run that the pieces joined are what the processor makes of the whole conversation.

    Raises:
        UserError: no chat template, no image placeholder in it, or other token ids than the processor's own.
    """
    import numpy as np
    from PIL import Image

    encoder = BlockEncoder(processor)
    chat = encoder.chat
    images = 0 if chat.image_token is None else 1
    probe = [("Is this a normal ECG?", "No"), ("What is the rhythm?", "Sinus rhythm, 72 per minute.")]
    prefix = family.prefix_ids(images)
    asked = [*prefix, *encoder(probe[0][0]).question]
    text = chat.render([(probe[0][0], None)], images)
    inputs: dict[str, Any] = {}
    if images:
        page = family.fit(np.full((768, 1056, 3), 255, np.uint8))
        inputs["images"] = [[Image.fromarray(page)]]
    own = processor(text=[text], add_special_tokens=False, **inputs)["input_ids"][0]
    _same([*chat.start_ids(text), *own], asked, "a question", chat)
    # Where the template ends no answer, the end-of-text token stands behind each: LLaVA's own training text.
    block = encoder.turns([probe[0], probe[1]])
    joined = [*prefix, *(token for turn in block.turns for token in (*turn.question, *turn.answer))]
    whole = _with_stops(chat, probe, images)
    if images and chat.image_token is not None:
        whole = whole.replace(chat.image_token, chat.image_token * (prefix.count(_image_id(chat)) // images))
    _same([*chat.start_ids(whole), *chat.ids(whole)], joined, "two turns", chat)


def _with_stops(chat: Chat, turns: Sequence[tuple[str, str]], images: int) -> str:
    pieces, rest, done = chat.pieces, chat.render(turns, images), ""
    for number, (question, answer) in enumerate(turns):
        if number:
            rest = rest[rest.index(pieces.follow_head) :]
        turn = question + pieces.tail + pieces.answer_head + answer
        end = rest.index(turn) + len(turn)
        done, rest = done + rest[:end] + pieces.stop, rest[end:]
    return done


def _same(own: Sequence[int], joined: Sequence[int], what: str, chat: Chat) -> None:
    if list(own) == list(joined):
        return
    at = next((i for i, (a, b) in enumerate(zip(own, joined, strict=False)) if a != b), min(len(own), len(joined)))
    ours, theirs = (chat.tokenizer.convert_ids_to_tokens(list(ids[at : at + 4])) for ids in (joined, own))
    raise UserError(
        f"model.base: {what} joined from the chat template's pieces differs from the processor's own ids at "
        f"token {at}: {ours} instead of {theirs}; this template cannot be packed"
    )


def _image_id(chat: Chat) -> int:
    return int(chat.tokenizer.convert_tokens_to_ids(chat.image_token))


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(name for name in (*added, *tokenizer.all_special_tokens) if name))


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
