"""Plain English sentences to be heard, as many as are needed: no names, no numbers, nothing with two spellings.

Made from lists of words by a few patterns, and the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice

__all__ = ["sentences"]

_LISTS: Mapping[str, str] = {
    "person": (
        "farmer/teacher/doctor/painter/captain/driver/miller/baker/singer/nurse/student/gardener/sailor/lawyer/"
        "child/stranger/hunter/writer/carpenter/shepherd/tailor/waiter/visitor/soldier"
    ),
    "relative": "mother/father/brother/sister/uncle/cousin/grandmother/daughter/husband/friend",
    "thing": (
        "basket/window/ladder/kettle/blanket/letter/bottle/garden/bridge/jacket/hammer/mirror/pillow/ticket/"
        "wagon/candle/picture/bicycle/suitcase/shovel/teapot/violin/carpet/barrel/fence/lantern/saddle/chimney/"
        "drawer/umbrella/sandwich/machine/necklace/cushion/engine/bucket/orange/rope/clock/shelf/boat/knife/coat/"
        "chair"
    ),
    "adjective": (
        "heavy/broken/yellow/wooden/narrow/ancient/shiny/purple/empty/frozen/gentle/crooked/dusty/golden/hollow/"
        "simple/square/strange/muddy/quiet/rusty/smooth/striped/modern/expensive/familiar/little/useless/bright/"
        "damp/fresh/green/large/plain/rough/sharp/thick/warm"
    ),
    "verb": (
        "find found/carry carried/bring brought/hide hid/sell sold/clean cleaned/lose lost/paint painted/"
        "drop dropped/move moved/choose chose/borrow borrowed/watch watched/draw drew/keep kept/leave left/"
        "buy bought/measure measured/forget forgot/repair repaired/examine examined/admire admired/"
        "deliver delivered/mention mentioned/destroy destroyed/cover covered/push pushed/steal stole/throw threw/"
        "describe described"
    ),
    "place": (
        "across the field/behind the stable/near the river/under the table/beside the road/in the kitchen/"
        "on the balcony/at the station/outside the church/below the stairs/in the valley/along the shore/"
        "between the trees/inside the cave/on the hill/by the lake/at the market/around the corner"
    ),
    "time": (
        "Before sunrise/After the storm/Late in the evening/During the winter/On a cloudy morning/Every summer/"
        "At the end of the day/Without a word/For no clear reason/Long ago/Just in time/To our surprise"
    ),
    "weather": (
        "The rain had stopped/The wind was cold/Snow covered the roof/The moon was bright/The fog was thick/"
        "A dog was barking/The bell was ringing/The fire went out/Nobody was awake/The street was empty"
    ),
    "manner": (
        "with great care/very slowly/in a hurry/once again/without help/as usual/in silence/with a smile/"
        "by mistake/for the last time"
    ),
}
_PATTERNS = (
    "The {adjective} {thing} was {past} by the {person} {place}.",
    "{time}, the {person} {past} the {adjective} {thing} {place}.",
    "Why did the {person} {verb} the {thing} {place}?",
    "{weather}, and the {person} {past} the {thing} {manner}.",
    "Please {verb} the {adjective} {thing} before the {person} comes home.",
    "My {relative} {past} the {thing} because it looked {adjective}.",
    "Nobody {past} the {adjective} {thing} that the {person} left {place}.",
    "The {person} and my {relative} {past} the {thing} {manner}.",
    "If you {verb} the {thing}, the {person} will wait {place}.",
    "We thought that the {person} {past} the {adjective} {thing} {manner}.",
)
_PARTICIPLES = {
    "hid": "hidden",
    "chose": "chosen",
    "drew": "drawn",
    "forgot": "forgotten",
    "stole": "stolen",
    "threw": "thrown",
}


def sentences(count: int) -> list[str]:
    """The first `count` of them, all different; of 9 to 15 words."""
    return list(islice(_all(), count))


def _all() -> Iterator[str]:
    lists = {kind: words.split("/") for kind, words in _LISTS.items()}
    draw, seen, number = random.Random(22), set[str](), 0  # `random()` itself is the same in every version of Python
    while True:
        pattern = _PATTERNS[number % len(_PATTERNS)]
        number += 1
        chosen = {kind: words[int(draw.random() * len(words))] for kind, words in lists.items()}
        chosen["verb"], past = chosen["verb"].split()
        chosen["past"] = _PARTICIPLES.get(past, past) if " was {past}" in pattern else past
        sentence = pattern.format(**chosen)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence
