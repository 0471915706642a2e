"""What is spoken while serving is measured: sentences of 20 words, and texts of any length."""

from __future__ import annotations

import itertools

__all__ = ["SENTENCES", "text_of"]

SENTENCES = (  # of 20 words each
    "The quick brown fox jumps over the lazy dog while the evening sun goes slowly down behind the distant hills.",
    "Every morning before breakfast my uncle walks along the river with two small dogs and his big old red umbrella.",
    "Nobody in the village could remember a winter so mild that roses were still in bloom on the last day.",
    "She opened the heavy door, looked into the empty hall, and wondered why all of the lamps were already burning.",
    "When the train finally arrived, most of the people on the platform had given up waiting and gone home again.",
    "The cook tasted the soup, added a little salt and some lemon, and smiled as if he remembered something pleasant.",
    "They built the bridge of stone because wood was scarce there and iron could not be carried across the mountains.",
    "A letter from his brother lay on the table for three days before he found the courage to open it.",
    "If you follow the narrow path beyond the mill, you will come to a spring that has never run dry.",
    "The teacher asked a simple question, but it took the whole class an hour to agree on a useful answer.",
)


def text_of(words: int) -> str:
    """Sentences of 20 words, the last one cut short."""
    return " ".join(" ".join(itertools.islice(itertools.cycle(SENTENCES), -(-words // 20))).split()[:words])
