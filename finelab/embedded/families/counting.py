"""Words of a sentence, letters of a word and items of a list, counted."""

from random import Random

from finelab.embedded.families.common import (
    COLLECTIONS,
    SENTENCES,
    Kind,
    Words,
    amount,
    family_of,
    join,
    plural,
    split,
)

SPELLING = split(
    "banana, coffee, committee, cucumber, engineer, grammar, holiday, mistletoe, necessary, "
    "parallel, pineapple, raccoon, strawberry, tomorrow, umbrella, volleyball"
)


def _fill_words(rng: Random) -> dict[str, object]:
    frame = rng.choice(tuple(SENTENCES))
    text = frame.format(rng.choice(SENTENCES[frame]))
    words = text.rstrip(".?").split(" ")
    return {"text": text, "count": len(words), "listed": ", ".join(words)}


def _words_hold(words: Words) -> bool:
    listed = words["listed"].split(", ")
    return words["text"][:-1] == " ".join(listed) and len(listed) == int(words["count"])


def _fill_letters(rng: Random) -> dict[str, object]:
    word = rng.choice(SPELLING)
    letter = rng.choice(word)
    places = [str(place) for place, other in enumerate(word, 1) if other == letter]
    return {
        "word": word,
        "letter": letter,
        "times": amount(len(places), "time"),
        "spelled": "-".join(word),
        "places": f"{plural('letter', len(places))} {join(places)}",
    }


def _letters_hold(words: Words) -> bool:
    noun, places = words["places"].split(" ", 1)
    marked = {int(place) for place in split(places)}
    rest = "".join("" if i in marked else other for i, other in enumerate(words["word"], 1))
    return (
        rest == words["word"].replace(words["letter"], "")
        and len(rest) + len(marked) == len(words["word"])
        and words["times"] == amount(len(marked), "time")
        and noun == plural("letter", len(marked))
        and words["spelled"].split("-") == list(words["word"])
    )


def _fill_items(rng: Random) -> dict[str, object]:
    what = rng.choice(tuple(COLLECTIONS))
    items = rng.sample(COLLECTIONS[what], rng.randrange(4, 9))
    return {"what": what, "items": ", ".join(items), "count": len(items), "all": join(items)}


def _items_hold(words: Words) -> bool:
    items = split(words["all"])
    return ", ".join(items) == words["items"] and len(items) == int(words["count"])


WORDS = Kind(
    questions=(
        "How many words are in this sentence?\n\n{text}",
        "Count the words: {text}",
        'How many words does "{text}" have?',
    ),
    answer="{count} words. One by one, they are {listed}.",
    result="count",
    fill=_fill_words,
    holds=_words_hold,
)
LETTERS = Kind(
    questions=(
        'How many times does the letter "{letter}" appear in "{word}"?',
        'How often does "{word}" contain the letter "{letter}"?',
    ),
    answer="{times}. In {spelled}, look at {places}.",
    result="times",
    fill=_fill_letters,
    holds=_letters_hold,
)
ITEMS = Kind(
    questions=(
        "How many {what} are on this list? {items}",
        "Please count these {what}: {items}",
        "{name} wrote down {items}. How many {what} is that?",
    ),
    answer="{count} {what}. They are {all}.",
    result="count",
    fill=_fill_items,
    holds=_items_hold,
)
FAMILY = family_of("counting", 4.3, WORDS, LETTERS, ITEMS)
