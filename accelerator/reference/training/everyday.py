"""Everyday sentences without end: what people ask a voice to say, from templates with slots."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..numerals import MONTHS

__all__ = ["templates"]


def templates(seed: int) -> Iterator[str]:
    """Everyday sentences without end."""
    source = random.Random(seed)
    while True:
        yield re.sub(r"\{(\w+)\}", lambda slot: _fill(slot[1], source), source.choice(_TEMPLATES))


def _fill(slot: str, source: random.Random) -> str:
    n = source.randint
    match slot:
        case "digit":
            return str(n(1, 12))
        case "number":
            return str(source.choice((n(0, 20), n(20, 100), n(100, 1000), n(1000, 99_999), n(100_000, 9_999_999))))
        case "decimal":
            return f"{n(0, 99)}.{n(0, 99)}"
        case "time":
            minute = source.choice((0, 5, 10, 15, 20, 30, 40, 45, n(0, 59)))
            return f"{n(1, 12)}:{minute:02d}{source.choice(('', '', ' am', ' pm'))}"
        case "date":
            return f"{source.choice(MONTHS).title()} {n(1, 28)}{source.choice(('', f', {n(1800, 2030)}'))}"
        case "year":
            return str(n(1700, 2040))
        case "price":
            return source.choice("$$$£€") + source.choice((f"{n(1, 500)}", f"{n(0, 99)}.{n(0, 99):02d}"))
        case "nth":
            return f"{n(1, 31)}th"
        case "phone":
            return f"555-{n(0, 9999):04d}"
    return source.choice(_SLOTS[slot])


_SLOTS = {
    name: re.split(r",\s+", words)
    for name, words in re.findall(
        r"(\w+): ((?:.|\n)+?)(?=\n *\w+:|\Z)",
        """
    name: Anna, Peter, Maria, John, Susan, David, Laura, Michael, Emily, James, Sarah, Robert, Linda, William,
        Karen, Thomas, Nancy, Daniel, Lisa, Paul, Betty, Mark, Helen, George, Sandra, Kevin, Ruth, Brian, Alice,
        Edward, Julia, Henry, Grace, Oscar, Nina, Victor, Clara, Simon, Irene, Felix
    city: London, Paris, Boston, Chicago, Berlin, Tokyo, Madrid, Rome, Dublin, Sydney, Vienna, Oslo, Toronto,
        Seattle, Denver, Houston, Cairo, Delhi, Lisbon, Prague, Geneva, Athens, Moscow, San Francisco, New York, Los
        Angeles
    day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, today, tomorrow
    thing: book, letter, phone, computer, ticket, key, coat, picture, car, bicycle, table, window, camera, report,
        message, file, package, cake, cup of tea, glass of water, newspaper, umbrella, watch, piano, map, garden,
        kitchen, door, bag, hat, lamp, chair, program, printer, meeting, song, story, answer, question, train,
        plane, house, school, office, bridge, river, dog, cat, bird
    adjective: good, bad, new, old, small, large, long, short, red, blue, green, white, black, warm, cold, quick,
        slow, easy, hard, quiet, loud, clean, bright, dark, happy, sad, strange, simple, careful, famous, empty,
        heavy, light, sweet, young, early, late, important, beautiful, expensive, cheap, broken, wonderful, terrible
    verb: find, see, take, bring, open, close, buy, sell, read, write, send, keep, move, fix, use, clean, carry,
        show, forget, remember, understand, change, finish, start, try, leave, choose, watch, hear, follow
    place: at the station, in the park, at home, on the corner, in the kitchen, near the river, at work, by the sea,
        in the city, behind the house, across the street, on the table, under the bridge, next to the bank, upstairs
    weather: sunny, rainy, cloudy, windy, foggy, clear, stormy, snowy, dry, humid
    feeling: tired, hungry, thirsty, glad, sorry, sure, ready, busy, angry, afraid, proud, surprised, fine, sick,
        excited
    role: doctor, teacher, driver, engineer, nurse, lawyer, baker, farmer, singer, painter, captain, student,
        manager, neighbor, brother, sister, mother, father, friend, uncle, aunt, boss, pilot, waiter, writer,
        scientist
    greeting: Hello, Hi, Good morning, Good afternoon, Good evening, Good night, Welcome, Hey, Dear friends, Thanks
        """.strip(),
    )
}

_TEMPLATES = tuple(
    line.strip()
    for line in """
    {greeting}, {name}. How are you {day}?
    {greeting}, {name}.
    {greeting}, and welcome to {city}.
    Thank you very much, {name}, I am {feeling}.
    Please {verb} the {adjective} {thing}.
    Could you {verb} the {thing} {place}, please?
    I would like to {verb} a {adjective} {thing}.
    Where is the {adjective} {thing}?
    Why did the {role} {verb} the {thing}?
    When will {name} {verb} the {thing}?
    Who wants to {verb} my {adjective} {thing}?
    Do you {verb} the {thing} {place}?
    Have you met my {role}, {name}?
    What time is it? It is {time}.
    The train to {city} leaves at {time} from platform {digit}.
    Your appointment is on {date} at {time}.
    The meeting starts at {time} on {day}.
    My birthday is on {date}.
    She was born on {date} in {city}.
    It happened on {date}.
    In {year} he moved to {city}.
    Between {year} and {year} the town grew to {number} people.
    It costs {price}.
    The {thing} costs {price}, but the {thing} is only {price}.
    That will be {price}, please.
    I paid {price} for {digit} of them.
    There are {number} people {place}.
    We counted {number} and then {number} more.
    The answer is {decimal}.
    The total comes to {number}, which is {decimal} percent more than last year.
    My number is {phone}.
    Please call {phone} before {time}.
    Turn left after {number} meters, then take the {nth} exit.
    {city} is {number} kilometers from {city}.
    The weather in {city} is {weather} and {adjective}, with {digit} degrees.
    It will be {weather} on {day}, and {weather} on {day}.
    I am {feeling}, and you are {feeling} too.
    Are you {feeling}, {name}?
    {name} is a {role} and lives in {city}.
    {name} and {name} are {feeling}.
    The {role} said that the {thing} was {adjective}.
    "I am {feeling}," said the {role}.
    If you {verb} the {thing}, the {role} will {verb} it again.
    Don't {verb} that {thing}, it's {adjective}!
    I can't {verb} it, because the {thing} isn't {adjective}.
    We'll {verb} the {thing} {day}, won't we?
    What a {adjective} {thing}!
    Be careful, the {thing} is {adjective}!
    Wait a moment, please.
    One moment, I will {verb} it for you.
    You have {digit} new messages and {digit} missed calls.
    Chapter {digit}. The {adjective} {thing}.
    Step {digit}: {verb} the {thing}, then {verb} the {thing}.
    The battery is at {number} percent.
    The file is {decimal} megabytes and was changed on {date}.
    Flight {number} to {city} departs at {time}.
    The {thing}, the {thing} and the {thing} are all {place}.
    Yes, I {verb} it every {day}.
    No, that is not my {thing}.
    He put the {thing} {place}, and she put the {thing} {place}.
    I think the {adjective} {role} will {verb} the {thing} {place}.
    Nobody knew that {name} was a {adjective} {role}.
    Let's {verb} it together, {name}.
    This is a test of the {adjective} {thing}.
    Today we want to talk about the {adjective} {thing} {place}.
    {number}, {number}, {number}.
    Page {number}, line {number}.
    At {time} the {role} closed the {thing} and went home.
    {name}, can you hear me? I am {place}.
    I love the {adjective} {thing} {place}.
    """.strip().splitlines()
)
