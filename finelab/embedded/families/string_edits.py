"""Words exchanged or taken out of a sentence, and titles in another case."""

from random import Random

from finelab.embedded.families.common import COLORS, SENTENCES, Kind, Words, family_of, split

# What stands between the words of a title, and the rule in words.
CASES = {
    "snake_case": ("_", "the words are lowercase and joined with underscores"),
    "kebab-case": ("-", "the words are lowercase and joined with hyphens"),
    "title case": (" ", "each word starts with a capital letter"),
}
TITLES = (
    split("weekly, monthly, quarterly, final, draft, shared"),
    split("sales, travel, budget, garden, music, weather"),
    split("report, plan, summary, overview, checklist, survey"),
)


def _fill_replace(rng: Random) -> dict[str, object]:
    frame = rng.choice(tuple(SENTENCES))
    old, new = rng.sample(SENTENCES[frame], 2)
    return {"old": old, "new": new, "text": frame.format(old), "edited": frame.format(new)}


def _replace_holds(words: Words) -> bool:
    before, after = words["text"].split(words["old"]), words["edited"].split(words["new"])
    return before == after and len(before) == 2


def _fill_remove(rng: Random) -> dict[str, object]:
    frame = rng.choice([frame for frame, words in SENTENCES.items() if words is COLORS])
    old = rng.choice(COLORS)
    return {"old": old, "text": frame.format(old), "edited": frame.replace("{} ", "")}


def _remove_holds(words: Words) -> bool:
    return [w for w in words["text"].split() if w != words["old"]] == words["edited"].split()


def _fill_case(rng: Random) -> dict[str, object]:
    parts, style = [rng.choice(choices) for choices in TITLES], rng.choice(tuple(CASES))
    mark, rule = CASES[style]
    edited = mark.join(parts)
    return {
        "text": " ".join(parts),
        "style": style,
        "edited": edited.title() if style == "title case" else edited,
        "rule": rule,
    }


def _case_holds(words: Words) -> bool:
    parts, (mark, rule) = words["text"].split(), CASES[words["style"]]
    if words["style"] == "title case":
        parts = [part[0].upper() + part[1:] for part in parts]
    return words["edited"].split(mark) == parts and words["rule"] == rule


REPLACE = Kind(
    questions=(
        'Replace "{old}" with "{new}" in this sentence: {text}',
        'Please change "{old}" to "{new}":\n\n{text}',
        'Edit this line so that it says "{new}" instead of "{old}": {text}',
    ),
    answer='{edited}\n\nI changed "{old}" to "{new}" and kept the rest.',
    result="edited",
    fill=_fill_replace,
    holds=_replace_holds,
)
REMOVE = Kind(
    questions=(
        'Remove the word "{old}" from this sentence: {text}',
        'Take the word "{old}" out and leave everything else as it is:\n\n{text}',
    ),
    answer='{edited}\n\nI took out "{old}" and kept the rest.',
    result="edited",
    fill=_fill_remove,
    holds=_remove_holds,
)
CASE = Kind(
    questions=(
        'Write "{text}" in {style}.',
        'I need "{text}" in {style}, please.',
        'How does "{text}" look in {style}?',
    ),
    answer="{edited}\n\nIn {style}, {rule}.",
    result="edited",
    fill=_fill_case,
    holds=_case_holds,
)
FAMILY = family_of("string-edits", 4.4, REPLACE, REMOVE, CASE)
