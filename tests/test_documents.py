"""The documents: the files, pages and headings that they name exist, and they are short enough to
be read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("**/README.md")),
]
FOLDERS = "pruning model serving stream niwaki benchmarks docs config tests results".split()
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*|\w+\.py)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(document: Path) -> set[str]:
    """The anchors that headings make, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_a_document_names_exists(document):
    names = NAMED.findall(document.read_text("utf-8"))
    places = [ROOT, document.parent, *(ROOT / "benchmarks").iterdir()]
    missing = [name for name in names if not any((place / name).exists() for place in places)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_to_a_page_or_a_heading_leads_somewhere(document):
    missing = []
    for link in LINK.findall(document.read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or anchor and anchor not in anchors(target):
            missing.append(link)
    assert not missing


def test_the_documents_that_a_newcomer_reads_first_are_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text("utf-8").split()) <= 1_500
    assert len((ROOT / "benchmarks/README.md").read_text("utf-8").splitlines()) <= 80


def test_every_folder_at_the_top_is_in_the_readme():
    tree = re.findall(r"^    (\w+)/ ", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    folders = {path.name for path in ROOT.iterdir() if any(path.rglob("*.py"))} - {"build"}
    assert {name for name in folders if not name.startswith(".")} <= set(tree)
    assert all((ROOT / name).is_dir() for name in tree)
