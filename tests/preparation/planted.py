# SPDX-License-Identifier: Apache-2.0
"""English and German pairs of a small grammar, and each kind of dirt planted among them."""

import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

Pair = tuple[str, str]

SUBJECTS = """the young teacher=der junge Lehrer|my old neighbour=mein alter Nachbar
a tired nurse=eine müde Krankenschwester|the famous painter=der berühmte Maler
our little sister=unsere kleine Schwester|the friendly baker=der freundliche Bäcker
a clever student=eine kluge Studentin|the new mayor=die neue Bürgermeisterin|his quiet uncle=sein stiller Onkel
the happy child=das glückliche Kind|her best friend=ihre beste Freundin|the proud farmer=der stolze Bauer
a curious tourist=ein neugieriger Tourist|the strict judge=die strenge Richterin|the lazy cat=die faule Katze"""
VERBS = """buys=kauft|finds=findet|brings=bringt|hides=versteckt|draws=zeichnet|loses=verliert|sells=verkauft
needs=braucht|shows=zeigt|watches=beobachtet|forgets=vergisst|describes=beschreibt|carries=trägt|cleans=putzt
repairs=repariert"""
OBJECTS = """a red umbrella=einen roten Regenschirm|the broken clock=die kaputte Uhr
an expensive ring=einen teuren Ring|some fresh bread=etwas frisches Brot|the heavy suitcase=den schweren Koffer
a long letter=einen langen Brief|the wooden table=den hölzernen Tisch|two green apples=zwei grüne Äpfel
a warm blanket=eine warme Decke|the golden key=den goldenen Schlüssel|an empty bottle=eine leere Flasche
the secret map=die geheime Karte|a small boat=ein kleines Boot|the white horse=das weiße Pferd
a strange picture=ein seltsames Bild"""
PLACES = """in the garden=im Garten|behind the church=hinter der Kirche|at the station=am Bahnhof
near the river=am Fluss|on the bridge=auf der Brücke|in the library=in der Bibliothek|at the market=auf dem Markt
under the stairs=unter der Treppe|in the kitchen=in der Küche|beside the school=neben der Schule
on the beach=am Strand|in the hospital=im Krankenhaus"""


def _choices(text: str) -> list[list[str]]:
    return [entry.split("=") for entry in text.replace("\n", "|").split("|")]


CLAUSE = [_choices(text) for text in (SUBJECTS, VERBS, OBJECTS, PLACES)]
CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувшжыз")


def clean_pair(draws: random.Random) -> Pair:
    """Two clauses, and a number in every third pair."""
    clauses = [[draws.choice(part) for part in CLAUSE] for _ in range(2)]
    english, german = ([" ".join(words[side] for words in clause) for clause in clauses] for side in (0, 1))
    ends = (".", ".")
    if draws.random() < 1 / 3:
        number = draws.randint(11, 9999)
        ends = (f" in the year {number}.", f" im Jahr {number}.")
    first, second = (" and ".join(english) + ends[0], " und ".join(german) + ends[1])
    return first[0].upper() + first[1:], second[0].upper() + second[1:]


@dataclass(frozen=True)
class Planted:
    """A pair, the reason for which it must be dropped (`None`: it must be kept), and the text that must be kept."""

    pair: Pair
    reason: str | None
    kept_as: Pair


def planted_set(clean: int, each: int, held_out: int, seed: int = 1) -> tuple[list[Planted], list[Pair]]:
    """`clean` pairs, a quarter to be normalised, with `each` of every kind of dirt; and the held-out pairs.

    Duplicates come after the pairs that they repeat, all else in random order.
    """
    draws = random.Random(seed)
    pairs: set[Pair] = set()
    while len(pairs) < clean + 8 * each + held_out:
        pairs.add(clean_pair(draws))
    pool = sorted(pairs)
    draws.shuffle(pool)
    out, kept = [pool.pop() for _ in range(held_out)], [pool.pop() for _ in range(clean)]
    rows = [Planted(_unclean(pair, draws) if place % 4 == 0 else pair, None, pair) for place, pair in enumerate(kept)]
    dirt: dict[str, Callable[[Pair], Pair]] = {
        "empty": lambda pair: draws.choice([(pair[0], " "), ("— …", pair[1]), ("\x07", pair[1])]),
        "length": lambda pair: (" ".join([pair[0]] * 30), " ".join([pair[1]] * 30)),
        "length ratio": lambda pair: draws.choice([(pair[0], "Gut."), ("Yes, good.", pair[1])]),
        "identical": lambda pair: draws.choice([(pair[0], pair[0]), (pair[1].upper(), pair[1])]),
        "script": lambda pair: (pair[0], pair[1].lower().translate(CYRILLIC)),
        "numbers": lambda pair: (
            f"{pair[0]} Page {draws.randint(100, 999)}.",
            f"{pair[1]} Seite {draws.randint(1000, 9999)}.",
        ),
        "language": lambda pair: draws.choice(
            [(pair[1], pair[0]), (pair[0], f"Today {pair[0]}"), (f"Heute: {pair[1]}", pair[1])]
        ),
        "overlap": lambda _: _overlapping(draws.choice(out), draws),
    }
    for reason, spoil in dirt.items():
        rows += [Planted(pair := spoil(pool.pop()), reason, pair) for _ in range(each)]
    draws.shuffle(rows)
    for reason, repeat in (("exact duplicate", _unclean), ("near duplicate", _changed)):
        rows += [Planted(pair := repeat(draws.choice(kept), draws), reason, pair) for _ in range(each)]
    return rows, out


def _overlapping(pair: Pair, draws: random.Random) -> Pair:
    """One side as it is held out, but for capitals and punctuation."""
    return draws.choice([(pair[0].upper(), f"Jetzt: {pair[1]}"), (f"Now: {pair[0]}", f"„{pair[1]}“")])


def _unclean(pair: Pair, draws: random.Random) -> Pair:
    """The same after normalisation."""
    ways: list[Callable[[str], str]] = [
        lambda text: f"\ufeff{text}",
        lambda text: text.replace(" ", "\u00a0", 1),
        lambda text: text.replace(" ", "  "),
        lambda text: f"{text}\x00",
        lambda text: f"\u3000{text}\t",
        lambda text: unicodedata.normalize("NFD", text),
    ]
    return draws.choice(ways)(pair[0]), draws.choice(ways)(pair[1])


def _changed(pair: Pair, draws: random.Random) -> Pair:
    """The same but for a letter, a word, capitals or punctuation of a side or of both."""
    place = draws.randrange(len(pair[0]) - 1)
    ways: list[Callable[[Pair], Pair]] = [
        lambda pair: (pair[0][:place] + "x" + pair[0][place + 1 :], pair[1]),
        lambda pair: (f"Indeed, {pair[0]}", pair[1]),
        lambda pair: (pair[0].upper(), pair[1] + "!"),
        lambda pair: (pair[0].replace(".", ""), f"„{pair[1]}“"),
        lambda pair: (pair[0], pair[1].replace("ei", "ie")),
    ]
    return draws.choice(ways)(pair)
