"""The language of a word: a text task from wordfreq's word lists (`pip install "genfl_mpi[words]"`).

    PYTHONPATH=configs/words mpirun -n 4 python -m genfl_mpi configs/words/words.yaml

`languages` is the data set, `ngrams` the generator at the server, `network` the model.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from genfl_mpi.data.datasets import Description
from genfl_mpi.util import streams

LANGUAGES = {"de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch"}
LETTERS = "abcdefghijklmnopqrstuvwxyzàáâäæçèéêëìíîïñòóôöùúûüœß"
ALPHABET = " " + LETTERS  # 0 ends a word
LENGTH = 12  # letters of the longest words
WORDS = 1500  # of each language, the most frequent ones; every sixth is for testing
PUBLIC = 300  # further words of each language, which the generator learns from and no client holds


def encode(words: list[str]) -> np.ndarray:
    """Return words as numbers of letters, uint8 (n, LENGTH), filled up with 0."""
    codes = np.zeros((len(words), LENGTH), dtype=np.uint8)
    for row, word in zip(codes, words):
        row[: len(word)] = [ALPHABET.index(letter) for letter in word]
    return codes


def frequent_words(language: str) -> list[str]:
    """Return WORDS + PUBLIC frequent words of three to LENGTH letters."""
    from wordfreq import top_n_list

    fits = (
        word
        for word in top_n_list(language, 20 * (WORDS + PUBLIC))
        if 3 <= len(word) <= LENGTH and set(word) <= set(LETTERS)
    )
    return [word for word, _ in zip(fits, range(WORDS + PUBLIC))]


def languages(data):
    """Words of six languages; the class of a word is its language."""
    train = len(LANGUAGES) * (WORDS - WORDS // 6)
    return Description(tuple(LANGUAGES.values()), (LENGTH,), train, (), (), alphabet=ALPHABET), read_words


def read_words() -> dict[str, np.ndarray]:
    parts: dict[str, list] = {"train": [], "test": []}
    for label, language in enumerate(LANGUAGES):
        for place, word in enumerate(frequent_words(language)[:WORDS]):
            parts["test" if place % 6 == 5 else "train"].append((word, label))
    arrays = {}
    for part, words in parts.items():
        arrays[f"{part}_images"] = encode([word for word, _ in words])
        arrays[f"{part}_labels"] = np.array([label for _, label in words])
    return arrays


def ngrams(batch, shape) -> np.ndarray:
    """Draw words letter by letter, each from the letters that follow its two predecessors in public words."""
    tables = {label: _table(list(LANGUAGES)[label]) for label in set(batch.label)}
    words = []
    for label, seed in zip(batch.label, batch.seed):
        rng, word = streams.generator(seed, "word"), "  "
        while len(word) < LENGTH + 2:
            letters, weights = tables[label].get(word[-2:], ([" "], [1.0]))
            letter = letters[rng.choice(len(letters), p=weights)]
            if letter == " ":
                break
            word += letter
        words.append(word[2:])
    return encode(words)


def _table(language: str) -> dict[str, tuple[list[str], np.ndarray]]:
    """Count the letters after each pair: {pair: (letters, probabilities)}."""
    counts: dict[str, Counter] = {}
    for word in frequent_words(language)[WORDS:]:
        whole = f"  {word} "
        for place in range(len(word) + 1):
            counts.setdefault(whole[place : place + 2], Counter())[whole[place + 2]] += 1
    return {
        pair: (sorted(found), np.array([found[one] for one in sorted(found)]) / found.total())
        for pair, found in counts.items()
    }


class Words(nn.Module):
    """An embedding of letters, a convolution over three of them, and the maximum over the word."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 16)
        self.convolution = nn.Conv1d(16, 64, 3, padding=1)
        self.head = nn.Linear(64, classes)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        letters = self.embedding(codes.long()).transpose(1, 2)
        return self.head(self.convolution(letters).relu().amax(2))


def network(classes, shape):
    return Words(classes)
