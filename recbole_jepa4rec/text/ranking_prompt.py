"""The prompt that asks a language model for one of several items (LlamaRec, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import torch

LETTERS = ascii_uppercase
"""Labels of the candidates, in order; there can be no more candidates than these."""

_PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
)
_TASK = """\
### Instruction:
Given user history in chronological order, recommend an item from the candidate pool with its \
index letter.

### Input:
{input}

### Response:
"""


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt looks.

    Attributes:
        template: the prompt, with places for ``history`` and ``candidates``.
        separator: between two titles.
        is_numbered: whether the titles of a history have numbers, from 1.
    """

    template: str
    separator: str
    is_numbered: bool


FORMATS = {
    "alpaca": PromptFormat(
        _PREAMBLE + _TASK.format(input="User history:\n{history}\nCandidate pool:\n{candidates}"),
        separator="\n",
        is_numbered=False,
    ),
    "llamarec": PromptFormat(
        _TASK.format(input="User history: {history}; \n Candidate pool: {candidates}"),
        separator=" \n ",
        is_numbered=True,
    ),
}
"""By the key ``prompt_format``."""


class RankingPrompt:
    """Writes prompts of item titles and turns them into tokens.

    Args:
        tokenizer: a fast one of transformers.
        titles: of every internal item id, ``N``; longer ones are cut.
        num_candidates: of a prompt, at most.
        max_title_tokens: tokens of a title.
        max_history_titles: titles of a history; older ones are left out.
        max_tokens: tokens of a prompt; past that the oldest titles of the history are left out.
        prompt_format: one of ``FORMATS``.

    Raises:
        ValueError: if the tokenizer is not fast, a letter is not one token of its own, or the
            longest candidates alone do not fit.

    Attributes:
        letters: the token of each candidate's letter, ``num_candidates``.
        title_tokens: tokens of each title, ``[N]``.
        fixed_tokens: tokens of a prompt without history, and of what stands before a title, at
            most.
    """

    def __init__(
        self,
        tokenizer: Any,
        titles: Sequence[str],
        num_candidates: int,
        max_title_tokens: int,
        max_history_titles: int,
        max_tokens: int,
        prompt_format: str = "alpaca",
    ) -> None:
        self.tokenizer, self.format = tokenizer, FORMATS[prompt_format]
        self.max_history_titles, self.max_tokens = max_history_titles, max_tokens
        empty = self.format.template.format(history="", candidates="")
        self.letters = _letter_tokens(tokenizer, num_candidates, empty)
        encoded = tokenizer(
            list(titles), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ends = [[end for _, end in spans[:max_title_tokens]] for spans in encoded.offset_mapping]
        self.titles = [t[: e[-1]] if e else "" for t, e in zip(titles, ends, strict=True)]
        self.title_tokens = torch.tensor([len(end) for end in ends])
        longest = self.title_tokens.topk(num_candidates).indices.tolist()
        self.fixed_tokens = len(self.encode([[]], [longest])[0])
        if self.format.is_numbered:
            number = f"{self.format.separator}({max_history_titles}) "
            self.fixed_tokens += len(_encode(tokenizer, [number])[0])

    def write(self, history: Sequence[int], candidates: Sequence[int]) -> str:
        """The text for items of a history, oldest first, and its candidates."""
        pool = [f"({LETTERS[n]}) {self.titles[item]}" for n, item in enumerate(candidates)]
        titles = [self.titles[item] for item in history]
        if self.format.is_numbered:
            titles = [f"({number}) {title}" for number, title in enumerate(titles, 1)]
        join = self.format.separator.join
        return self.format.template.format(history=join(titles), candidates=join(pool))

    def encode(
        self, histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Token ids of each prompt.

        Args:
            histories: items of each history, oldest first, ``B``.
            candidates: items to choose from, ``B``.

        Raises:
            ValueError: if a prompt is too long even without history.
        """
        kept = [list(history[-self.max_history_titles :]) for history in histories]
        prompts: list[list[int]] = [[] for _ in kept]
        rows = list(range(len(kept)))
        while rows:
            texts = [self.write(kept[row], candidates[row]) for row in rows]
            for row, tokens in zip(rows, _encode(self.tokenizer, texts), strict=True):
                prompts[row] = tokens
            rows = [row for row in rows if len(prompts[row]) > self.max_tokens]
            for row in rows:
                if not kept[row]:
                    raise ValueError(
                        f"max_sequence_tokens {self.max_tokens} is too small: a prompt with "
                        f"num_candidates={len(candidates[row])} takes {len(prompts[row])} tokens "
                        "without any history"
                    )
                del kept[row][0]
        return prompts


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, verbose=False)["input_ids"]


def _letter_tokens(tokenizer: Any, count: int, prompt: str) -> list[int]:
    """The token that each letter adds to a prompt.

    Raises:
        ValueError: if one adds anything else than a token of its own.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer of language_model {name!r} is not a fast one (tokenizer.json)")
    before, *after = _encode(tokenizer, [prompt, *(prompt + letter for letter in LETTERS[:count])])
    tokens = [ids[-1] for ids in after]
    for letter, ids in zip(LETTERS, after, strict=False):
        if ids[:-1] != before or tokens.count(ids[-1]) > 1:
            raise ValueError(
                f"tokenizer of language_model {name!r} has no single token for the letter "
                f"{letter!r} after the prompt"
            )
    return tokens
