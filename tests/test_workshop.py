"""The teacher's pages agree with the chapters; each check is shown to fail on a page that does not."""

import ast
import builtins
import json
import re
from pathlib import Path

import pytest

WORKSHOP = Path(__file__).parents[1] / "workshop"
CHAPTERS = sorted((WORKSHOP.parent / "chapters").glob("*.ipynb"))
PAGES = {name: (WORKSHOP / name).read_text() for name in ("plans.md", "notes.md", "room.md")}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#]*)#?([^)]*)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
PARTS = ["The point.", "What goes wrong.", "Ask.", "In pairs.", "On the board.", "Short of time."]


def slug(heading):
    """Return the anchor that MyST, as GitHub, makes of a heading."""
    text = re.sub(r"[^\w\- ]", "", LINK.sub(r"\1", heading).strip().lower())
    return text.replace(" ", "-")


def anchors(path):
    """Return the anchors of a page or chapter. A heading that comes again gets a number."""
    slugs = [slug(heading) for heading in re.findall(r"^##{1,2} (.+)$", prose(path), re.MULTILINE)]
    return [f"{s}-{slugs[:i].count(s)}" if s in slugs[:i] else s for i, s in enumerate(slugs)]


def prose(path):
    if path.suffix == ".ipynb":
        return "\n\n".join(source for kind, source in cells(path) if kind == "markdown")
    return path.read_text()


def cells(path):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]


def sections(text, level):
    """Return heading and body of each section of a level; a section ends where one as high begins."""
    parts = re.split(rf"^(#{{1,{level}}} .+)$", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [(head[level + 1 :], body) for head, body in pairs if head.startswith("#" * level + " ")]


def plans(text):
    """Return total, rows and heading of each plan and of each day of one."""
    for level in (2, 3):
        for heading, body in sections(text, level):
            if total := re.search(r"(\d+) minutes", heading):
                rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) ?\| (.*?) ?\|$", body, re.MULTILINE)
                yield int(total[1]), rows, heading


# --- the checks: each returns what is wrong with a page, in words --------------------------------------


def wrong_minutes(text):
    """The minutes of a plan add up to those in its heading."""
    for total, rows, heading in plans(text):
        if (added := sum(int(minutes) for minutes, *_ in rows)) != total:
            yield f"{heading}: the rows add up to {added}"
        for _, what, where, how in rows:
            if how not in ("alone", "pairs", "all") and not what.startswith("Break"):
                yield f"{what}: alone, pairs or all? Not {how!r}"
            if bool(LINK.search(where)) == what.startswith("Break"):
                yield f"{what}: a link is missing, or one too many"


def wrong_course(text):
    """A plan predicts first, then explores, has an exercise in pairs, and ends in key points."""
    for _, rows, heading in plans(text):
        anchor = [LINK.search(where)[3] for *_, where, _ in rows if LINK.search(where)]
        exercises = [how for _, what, _, how in rows if what.startswith("Exercise")]
        if anchor[0] != "predict" or anchor[-1] != "key-points":
            yield f"{heading}: begins with {anchor[0]} and ends with {anchor[-1]}"
        if "explore" not in anchor or anchor.index("explore") < 1:
            yield f"{heading}: no explorer after the prediction"
        if set(exercises) != {"pairs"}:
            yield f"{heading}: exercises are for pairs, and there is at least one"


def wrong_notes(text):
    """Each chapter has its notes, each with all of their parts."""
    noted = {}
    for heading, body in sections(text, 2):
        noted[Path(LINK.search(heading)[2]).name] = re.findall(r"^\*\*(.+?)\*\*", body, re.MULTILINE)
    if sorted(noted) != [path.name for path in CHAPTERS]:
        yield f"the notes are on {sorted(noted)}"
    for name, parts in noted.items():
        if parts != PARTS:
            yield f"{name}: the parts are {parts}"


def wrong_links(text):
    """A link leads to a file that exists, and to a heading in it."""
    for _, file, anchor in LINK.findall(text):
        path = WORKSHOP / file
        if file.startswith("https://"):
            continue
        if not path.is_file():
            yield f"{file}: no such file"
        elif anchor and anchor not in anchors(path):
            yield f"{file} has no heading #{anchor}"


def wrong_exercises(text):
    """An exercise is named by a link to its heading in the chapter of the notes, under its own number."""
    for heading, body in sections(text, 2):
        chapter = (LINK.search(heading) or [""] * 4)[2]
        linked = [m for m in LINK.findall(body) if m[0].startswith("Exercise")]
        if len(linked) != len(re.findall(r"\bExercise\b", body)):
            yield f"{heading}: an exercise is named without a link"
        for name, file, anchor in linked:
            if file != chapter or not anchor.startswith(slug(name)):
                yield f"{heading}: {name} leads to {file}#{anchor}"


def wrong_numbers(text):
    """A number of the notes stands in the chapter, too: whoever changes it there is reminded of it here."""
    for heading, body in sections(text, 2):
        chapter = WORKSHOP / LINK.search(heading)[2]
        sources = cells(chapter) if chapter.is_file() else []
        known = set(NUMBER.findall("\n".join(source for _, source in sources)))
        for number in sorted(set(NUMBER.findall(LINK.sub("", body))) - known):
            yield f"{heading}: {number} does not occur in the chapter"


RULES = [
    ("plans.md", wrong_minutes), ("plans.md", wrong_course), ("plans.md", wrong_links),
    ("notes.md", wrong_notes), ("notes.md", wrong_links), ("notes.md", wrong_exercises),
    ("notes.md", wrong_numbers), ("room.md", wrong_links),
]  # fmt: skip
SPOILT = {  # which rule must object, what it is to find, and what is put there instead
    "minutes of a row": (0, r"^\| (\d+) \|", "| 99 |"),
    "total of a day": (0, r"360 minutes", "350 minutes"),
    "how": (0, r"\| pairs \|", "| together |"),
    "where": (0, r"\| \[3.3\]\(\S+\) \|", "| |"),
    "no prediction": (1, r"#predict", "#proof"),
    "no key points": (1, r"#key-points\) \| all", "#references) | all"),
    "no explorer": (1, r"#explore", "#proof"),
    "exercise for all": (1, r"(\| Exercise.*) pairs ", r"\1 all "),
    "no such file of a plan": (2, r"03_3_pruning", "03_3_prunning"),
    "no such heading of a plan": (2, r"#the-idea", "#the-ideas"),
    "chapter without notes": (3, r"^## \[3.2 (.|\n)*?(?=^## )", ""),
    "notes without questions": (3, r"^\*\*Ask\.\*\*\n", ""),
    "no such file": (4, r"03_1_sgd", "03_1_gds"),
    "no such heading": (4, r"#proof", "#proofs"),
    "no such exercise": (4, r"#exercise-2-the", "#exercise-4-the"),
    "exercise without link": (5, r"\[(Exercise 2)\]\(.*?\)", r"\1"),
    "exercise with another number": (5, r"\[Exercise 2\]", "[Exercise 3]"),
    "exercise of another chapter": (5, r"03_1_sgd.ipynb#exercise", "03_2_adam.ipynb#exercise"),
    "number that no chapter has": (6, r"3\.16", "3.17"),
    "no such recipe": (7, r"hub/values\.yaml", "hub/value.yaml"),
}


@pytest.mark.parametrize("name, rule", RULES)
def test_page(name, rule):
    assert list(rule(PAGES[name])) == []


@pytest.mark.parametrize("spoilt", SPOILT)
def test_rules_refuse(spoilt):
    index, pattern, new = SPOILT[spoilt]
    name, rule = RULES[index]
    page, changes = re.subn(pattern, new, PAGES[name], count=1, flags=re.MULTILINE)
    assert changes == 1
    assert set(rule(page)) - set(rule(PAGES[name]))


def test_there_are_plans():
    assert [total for total, *_ in plans(PAGES["plans.md"])] == [90, 180, 720, 360, 360]


@pytest.mark.parametrize(
    "heading, anchor",
    [
        ('"We pruned 90 %, same speed, why?"', "we-pruned-90--same-speed-why"),
        ("Where $T^2$ comes from", "where-t2-comes-from"),
        ("[3.1 Title](a.ipynb)", "31-title"),
    ],
)
def test_slug(heading, anchor):
    assert slug(heading) == anchor


# --- what the plans promise: an exercise needs the set-up cell and the imports, and no cell between ----


def unknown_names(codes):
    """Return the names that the last of some cells use and neither they nor the imports give them."""
    imports, *last = map(ast.parse, codes)
    nodes = [node for tree in last for node in ast.walk(tree)]
    aliases = [a for n in [*ast.walk(imports), *nodes] for a in getattr(n, "names", []) if hasattr(a, "name")]
    given = {a.asname or a.name.split(".")[0] for a in aliases} | set(dir(builtins))
    given |= {getattr(n, "name", None) or getattr(n, "arg", None) for n in nodes}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    given |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - given


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_an_exercise_needs_two_cells(path):
    found = cells(path)
    imports = [source for kind, source in found if kind == "code"][1]
    start = next(i for i, (_, source) in enumerate(found) if "## Exercises" in source)
    exercises = [source for kind, source in found[start:] if kind == "code"]
    assert exercises and unknown_names([imports, *exercises]) == set()


def test_the_check_of_names_can_fail():
    code = ["import numpy as np", "def f(a):\n    return np.sum(a) + [b for b in a][0]", "check(f)"]
    assert unknown_names(code) == {"check"}
