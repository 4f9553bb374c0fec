"""What chapter 6 quotes stands in the chapter it names, word for word, and every link leads somewhere."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from myst_parser.mdit_to_docutils.base import default_slugify

from dlopt_helpers.recipes import STEPS

CHAPTERS = Path(__file__).parents[2] / "chapters"
FAQ = nbformat.read(CHAPTERS / "06_faq.ipynb", as_version=4)
QUOTE = re.compile(r"^> ✓ (.+) \(\[[^\]]+\]\(([\w.]+\.ipynb)#([^)]+)\)\)$", re.MULTILINE)
VERDICTS = ("holds", "holds with a condition", "does not hold", "unsupported")


# --- reading ------------------------------------------------------------------------------------------


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def claims(notebook):
    """Return the sentences that the notebook's stored outputs verify."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    lines = "".join(output.get("text", "") + "\n" for output in outputs).splitlines()
    return {line.removeprefix("✓ ") for line in lines if line.startswith("✓ ")}


def anchors(notebook):
    """Return the anchor of each heading down to level 3, as MyST makes them."""
    return {
        default_slugify(title) for title in re.findall(r"^#{1,3} (.+?)\s*$", prose(notebook), re.MULTILINE)
    }


def open_chapter(name):
    path = CHAPTERS / (name or "06_faq.ipynb")
    return nbformat.read(path, as_version=4) if path.exists() else None


def wrong_quotes(notebook):
    """Return what is wrong with the quoted lines of a notebook, in words."""
    text = prose(notebook)
    quoted = QUOTE.findall(text)
    if len(quoted) != len(re.findall(r"^>", text, re.MULTILINE)):
        yield "a quoted line is no sentence with a link"
    for sentence, name, anchor in quoted:
        chapter = open_chapter(name)
        if chapter is None:
            yield f"there is no chapter {name}"
        elif sentence not in claims(chapter):
            yield f"{name} does not say: {sentence}"
        elif anchor not in anchors(chapter):
            yield f"{name} has no heading #{anchor}"


def wrong_links(text):
    """Return the links to chapters, or inside this one, that lead nowhere."""
    for name, anchor in re.findall(r"\]\(([\w.]*)#([^)]+)\)", text):
        chapter = open_chapter(name)
        if chapter is None or anchor not in anchors(chapter):
            yield f"{name}#{anchor}"
    for name in re.findall(r"\]\(([\w.]+\.ipynb)\)", text):
        if open_chapter(name) is None:
            yield name


def table(heading):
    """Return the rows of the table after a heading, without its head, as lists of cells."""
    after = re.split(rf"^#+ {re.escape(heading)}$", prose(FAQ), flags=re.MULTILINE)[1]
    lines = re.search(r"^\|.+?(?=\n\n|\Z)", after, re.MULTILINE | re.DOTALL)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- the chapter --------------------------------------------------------------------------------------


def test_quotes_stand_where_they_say():
    assert len(QUOTE.findall(prose(FAQ))) >= 40
    assert list(wrong_quotes(FAQ)) == []


def test_every_question_has_a_quote():
    questions = re.split(
        r"^### ", prose(FAQ).split("## Questions")[1].split("## Predict")[0], flags=re.MULTILINE
    )
    assert len(questions[1:]) >= 12
    for question in questions[1:]:
        assert question.splitlines()[0].endswith("?") and QUOTE.search(question), question


def test_links_lead_somewhere():
    assert list(wrong_links(prose(FAQ))) == []


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_steps_lead_to_their_section(step):
    assert list(wrong_links(f"[x]({step.section})")) == []


def test_each_statement_has_a_verdict_and_a_link():
    rows = table("All its statements")
    assert len(rows) >= 40 and {row[0] for row in rows} >= {
        "1",
        "2",
        "3.1",
        "3.2",
        "3.3",
        "3.4",
        "4",
        "5",
        "6",
    }
    for _, statement, verdict, link in rows:
        # After the verdict may follow its reason.
        assert re.split(r":| as | for ", verdict)[0] in VERDICTS, verdict
        assert statement.endswith(".") and len(statement) < 120
        assert re.fullmatch(r"\[[\d.]+\]\([\w.]+\.ipynb#[^)]+\)", link)
    assert len({row[1] for row in rows}) == len(rows)


def test_the_glossary_is_sorted_bilingual_and_linked():
    rows = table("Glossary")
    terms = [row[0] for row in rows]
    assert len(rows) >= 50 and terms == sorted(terms, key=str.lower) and len(set(terms)) == len(terms)
    assert len({row[1] for row in rows}) == len(rows)
    for _, chinese, meaning, link in rows:
        assert re.search(r"[\u4e00-\u9fff]", chinese) and meaning.endswith(".")
        assert re.fullmatch(r"\[[\d.]+\]\([\w.]+\.ipynb#[^)]+\)", link)


# --- the checks can fail ------------------------------------------------------------------------------


def changed(old, new):
    notebook = copy.deepcopy(FAQ)
    assert old in prose(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(old, new, 1)
    return notebook


SENTENCE, NAME, ANCHOR = QUOTE.search(prose(FAQ)).groups()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (SENTENCE, SENTENCE.replace("half", "a third")),
        (SENTENCE, SENTENCE.lower()),
        (SENTENCE, SENTENCE[:-1]),
        (f"{NAME}#{ANCHOR}", f"03_3_pruning.ipynb#{ANCHOR}"),
        (f"{NAME}#{ANCHOR}", f"{NAME}#{ANCHOR}x"),
        (f"{NAME}#{ANCHOR}", f"03_7_none.ipynb#{ANCHOR}"),
        (f"> ✓ {SENTENCE} (", f"> {SENTENCE} ("),
        (f"> ✓ {SENTENCE}", f"> And more.\n\n> ✓ {SENTENCE}"),
    ],
)
def test_a_changed_quote_is_found(old, new):
    assert old != new and list(wrong_quotes(changed(old, new)))


def test_a_sentence_that_is_not_an_output_is_no_claim():
    chapter = copy.deepcopy(open_chapter(NAME))
    for cell in chapter.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    assert claims(chapter) == set() and len(claims(open_chapter(NAME))) > 10


@pytest.mark.parametrize("link", ["[a](03_1_sgd.ipynb#nowhere)", "[a](none.ipynb)", "[a](#nowhere)"])
def test_a_dead_link_is_found(link):
    assert len(list(wrong_links(link))) == 1
