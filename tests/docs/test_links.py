"""Links of the documents lead to files and headings that there are."""

import pytest

from tests.docs.documents import DOCUMENTS, PAGES, ROOT, anchors, links, name_of


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_link_is_dead(document):
    for link in links(document):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = document if not path else (document.parent / path).resolve()
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_first_one():
    first = ROOT / "docs" / "index.md"
    linked = {link.partition("#")[0] for link in links(first)}
    assert {page.name for page in PAGES} - {"index.md"} <= linked


def test_every_picture_is_shown():
    shown = {(document.parent / link).resolve() for document in DOCUMENTS for link in links(document)}
    assert set((ROOT / "docs" / "images").iterdir()) <= shown
