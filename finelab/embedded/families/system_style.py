"""General knowledge, answered in the form that the system prompt asks for."""

import json
from dataclasses import dataclass
from random import Random

from finelab.embedded.families.common import (
    Conversation,
    Family,
    Words,
    ask,
    exchanges,
    match,
    read,
    split,
    talk,
)


@dataclass(frozen=True)
class Fact:
    """One sort of general knowledge: how to ask for it, how to say it, and what is known."""

    questions: tuple[str, ...]
    sentence: str
    known: Words


def _pairs(text: str) -> Words:
    return dict(pair.split(": ") for pair in split(text))


FACTS = (
    Fact(
        questions=(
            "What is the capital of {key}?",
            "Which city is the capital of {key}?",
            "Name the capital of {key}.",
        ),
        sentence="The capital of {key} is {word}.",
        known=_pairs(
            "France: Paris, Japan: Tokyo, Kenya: Nairobi, Peru: Lima, Norway: Oslo, Egypt: Cairo, "
            "Canada: Ottawa, Poland: Warsaw, Portugal: Lisbon, Greece: Athens, Cuba: Havana, "
            "Thailand: Bangkok, Austria: Vienna, Ireland: Dublin, Hungary: Budapest, Ghana: Accra, "
            "Vietnam: Hanoi, Finland: Helsinki, Chile: Santiago, Senegal: Dakar"
        ),
    ),
    Fact(
        questions=("What is a young {key} called?", "What do you call a young {key}?"),
        sentence="A young {key} is called a {word}.",
        known=_pairs(
            "cow: calf, dog: puppy, cat: kitten, sheep: lamb, horse: foal, goat: kid, "
            "duck: duckling, bear: cub, frog: tadpole, kangaroo: joey, swan: cygnet, deer: fawn"
        ),
    ),
    Fact(
        questions=("What is the currency of {key}?", "Which currency does {key} use?"),
        sentence="The currency of {key} is the {word}.",
        known=_pairs(
            "Japan: yen, India: rupee, Mexico: peso, Poland: złoty, Switzerland: franc, "
            "Brazil: real, South Korea: won, Turkey: lira, Thailand: baht, Sweden: krona, "
            "South Africa: rand, Kenya: shilling"
        ),
    ),
    Fact(
        questions=("What is the opposite of {key}?", "Tell me the opposite of {key}."),
        sentence="The opposite of {key} is {word}.",
        known=_pairs(
            "early: late, empty: full, shallow: deep, narrow: wide, ancient: modern, "
            "arrive: depart, generous: stingy, victory: defeat, question: answer, "
            "increase: decrease, north: south, always: never"
        ),
    ),
)
PERSONAS = (
    "You are a helpful assistant for students.",
    "You are a quiz host at a school.",
    "You are a patient tutor for beginners.",
    "You answer the questions of museum visitors.",
)
ONE_WORD = "Answer in exactly one word, without punctuation."
AS_JSON = 'Reply only with a JSON object that has the key "answer".'
CAPITALS = "Write every answer in capital letters."
FRAMES = {
    "End every answer with 'Over.'": "{sentence} Over.",
    "Begin every answer with 'Good question!'": "Good question! {sentence}",
    "After every answer, ask 'Shall I explain more?'": "{sentence} Shall I explain more?",
    "Write every answer as a bullet point that starts with a dash.": "- {sentence}",
}


def obey(rule: str, word: str, sentence: str) -> str:
    """The answer as the rule wants it."""
    if rule == ONE_WORD:
        return word.capitalize()
    if rule == AS_JSON:
        return json.dumps({"answer": word}, ensure_ascii=False)
    return sentence.upper() if rule == CAPITALS else FRAMES[rule].format(sentence=sentence)


def obeys(rule: str, answer: str, word: str, sentence: str) -> bool:
    """Whether the answer follows the rule and says what is known."""
    if rule == ONE_WORD:
        return answer[:1].isupper() and answer.lower() == word.lower()
    if rule == AS_JSON:
        return bool(json.loads(answer) == {"answer": word})
    if rule == CAPITALS:
        return answer.isupper() and answer.lower() == sentence.lower()
    return read(answer, FRAMES[rule]) == {"sentence": sentence}


def known(question: str) -> tuple[str, str]:
    """The right word for the question, and the sentence that says it."""
    for fact in FACTS:
        if asked := match(question, *fact.questions):
            word = fact.known[asked["key"]]
            return word, fact.sentence.format(word=word, **asked)
    raise ValueError(f"no fact answers: {question}")


def _make(rng: Random) -> Conversation:
    rule, turns = rng.choice((ONE_WORD, AS_JSON, CAPITALS, *FRAMES)), []
    for fact in rng.sample(FACTS, 2):
        key, word = rng.choice(tuple(fact.known.items()))
        turns.append(ask(rng, fact.questions, key=key))
        turns.append(obey(rule, word, fact.sentence.format(key=key, word=word)))
    return talk(*turns, system=f"{rng.choice(PERSONAS)} {rule}")


def _check(conversation: Conversation) -> bool:
    templates = [f"{persona} {{rule}}" for persona in PERSONAS]
    rule = read(conversation[0]["value"], *templates)["rule"]
    return all(obeys(rule, answer, *known(question)) for question, answer in exchanges(conversation))


def _result(conversation: Conversation) -> str:
    question, _ = exchanges(conversation)[-1]
    word, _ = known(question)
    return word


FAMILY = Family("system-style", _make, _check, _result, 4.7)
