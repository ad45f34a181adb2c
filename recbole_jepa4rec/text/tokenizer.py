"""Tokenizers: a WordPiece vocabulary trained on the items' text, or one that came with a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import punctuation

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from recbole_jepa4rec.base.files import atomic_write

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = {  # role -> its names in BERT's and in RoBERTa's vocabulary
    "cls": ("[CLS]", "<s>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}
_MIN_FREQUENCY = 2  # occurrences below which a merge is not worth an entry
_BLANKS = ("Ġ", "▁")  # with what a word's first token begins: byte-level, SentencePiece
_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("*.model",))
_LONGEST_WORD = 1000  # letters; of one with more than 100 WordPiece makes [UNK] anyway
_REPEATS_PER_LINE = 256
_TEXTS_PER_CALL = 8192


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the special tokens; ``all`` also holds those without a role here."""

    cls: int
    mask: int
    pad: int
    unk: int
    all: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> SpecialIds:
        """Find them under BERT's or RoBERTa's (so Longformer's) names.

        Raises:
            ValueError: if the vocabulary lacks one of them.
        """
        roles = {}
        for role, names in _ROLES.items():
            ids = [i for i in map(tokenizer.token_to_id, names) if i is not None]
            if not ids:
                raise ValueError(f"the tokenizer has no {role} token: none of {', '.join(names)}")
            roles[role] = ids[0]
        added = tokenizer.get_added_tokens_decoder()
        flagged = {i for i, token in added.items() if token.special}
        return cls(**roles, all=frozenset(flagged.union(roles.values())))


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a lower-casing WordPiece vocabulary, the same in every process.

    The library gives the alphabet's ``##`` entries ids in hash order, and ties between merges fall
    by id; so these entries are handed to it in sorted order.

    Args:
        texts: the text to learn from.
        vocab_size: largest number of entries. Characters too rare to find a place there become
            ``[UNK]``.

    Raises:
        ValueError: if ``vocab_size`` cannot hold the special tokens and one character.
    """
    smallest = len(_SPECIAL) + 2
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; at least {smallest} is needed")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = _count_words(texts, normalizer, splitter)
    words = _without_rare_characters(words, (vocab_size - len(_SPECIAL)) // 2)
    tokenizer = Tokenizer(models.WordPiece(_train(words, vocab_size), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load a fast tokenizer.

    Args:
        source: a ``tokenizer.json``, a folder in transformers' format or a hub name.

    Raises:
        ValueError: if there is no such tokenizer, it cannot be read or knows no word.
    """
    path = Path(source)
    if path.is_dir() and not any(all(map(any, map(path.glob, names))) for names in _FILES):
        allowed = ", ".join(" with ".join(names) for names in _FILES)
        raise ValueError(f"{path} holds no tokenizer (allowed: {allowed})")
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = _load_file(file) if file.is_file() else _load_with_transformers(source)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if special.issuperset(tokenizer.get_vocab().values()):
        raise ValueError(f"the tokenizer of {source} has no tokens besides the special ones")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a ``tokenizer.json`` that `load_tokenizer` reads."""
    with atomic_write(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())


def unlimited(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts nor pads, whatever the tokenizer came configured with."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def word_beginnings(tokenizer: Tokenizer) -> list[bool]:
    """Whether each entry of a vocabulary begins a word, ``V``; others go on with the one before.

    Either a word's first token carries the blank before it, or its others carry WordPiece's ``##``.
    A punctuation mark is a word of its own.
    """
    vocabulary = tokenizer.get_vocab()
    carries_blank = any(token.startswith(_BLANKS) for token in vocabulary)
    begins = [True] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if carries_blank:
            begins[number] = token.startswith((*_BLANKS, *punctuation))
        else:
            begins[number] = not token.startswith("##")
    return begins


def encode_values(tokenizer: Tokenizer, texts: list[str], room: int) -> list[list[int]]:
    """The first ``room`` tokens of each text, white space folded.

    A long text is cut to ``room`` words first, and tokenised whole only where those give fewer
    tokens, as words of control characters can.
    """
    tokens = encode_texts(tokenizer, [" ".join(text.split(None, room)[:room]) for text in texts])
    short = [
        row
        for row, text in enumerate(texts)
        if len(tokens[row]) < room and len(text.split(None, room)) > room
    ]
    whole = encode_texts(tokenizer, [" ".join(texts[row].split()) for row in short])
    for row, ids in zip(short, whole, strict=True):
        tokens[row] = ids
    return [ids[:room] for ids in tokens]


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The tokens of each text; the name of a special token in it is ordinary text.

    Raises:
        ValueError: if a text holds a lone surrogate.
    """
    tokenizer.encode_special_tokens = True  # set here because copies of a tokenizer forget it
    tokens: list[list[int]] = []
    for first in range(0, len(texts), _TEXTS_PER_CALL):
        part = texts[first : first + _TEXTS_PER_CALL]
        try:
            tokens += [e.ids for e in tokenizer.encode_batch(part, add_special_tokens=False)]
        except TypeError as error:
            raise ValueError("item text holds a lone surrogate: no Unicode text") from error
    return tokens


def _count_words(
    texts: Iterable[str],
    normalizer: normalizers.Normalizer,
    splitter: pre_tokenizers.PreTokenizer,
) -> Counter[str]:
    """Occurrences of each word; each distinct run of non-space characters is split only once."""
    runs = Counter(run for text in texts for run in text.split())
    words: Counter[str] = Counter()
    for run, count in runs.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(run)):
            if len(word) <= _LONGEST_WORD:  # training takes the square of the longest
                words[word] += count
    return words


def _without_rare_characters(words: Counter[str], limit: int) -> Counter[str]:
    """The words of the ``limit`` most frequent characters; among equals the smaller ones stay."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = set(ranked[:limit])
    return Counter({word: count for word, count in words.items() if kept.issuperset(word)})


def _train(words: Counter[str], vocab_size: int) -> dict[str, int]:
    inner = {character for word in words for character in word[1:]}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        show_progress=False,
        special_tokens=[*_SPECIAL, *(f"##{character}" for character in sorted(inner))],
    )
    lines = (
        f"{word} " * min(count - first, _REPEATS_PER_LINE)
        for word, count in words.items()
        for first in range(0, count, _REPEATS_PER_LINE)
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer.get_vocab()


def _load_file(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file}: not a tokenizer.json: {error}") from error


def _load_with_transformers(source: str | Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(source), use_fast=True, trust_remote_code=False)
        return found.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"no fast tokenizer at {str(source)!r} (a tokenizer.json, a folder or a hub name): "
            f"{reason}"
        ) from error
