import random

import pytest

from niwaki.stream.recordings.proposal import Asked
from tests.support.proposals import ROWS, column, proposal

RANDOM = random.Random(4)


def names(start: str, count: int = 50) -> list[str]:
    return [f"{start}{RANDOM.randrange(count)}" for _ in range(ROWS)]


def lists(start: str, count: int = 50) -> list[list[str]]:
    return [names(start, count)[: RANDOM.randint(0, 8)] for _ in range(ROWS)]


def integers(values: list) -> list:
    return [list(map(int, one)) if isinstance(one, list) else int(one) for one in values]


def test_a_list_shares_the_column_that_has_its_values():
    found = proposal(item=names("i"), city=names("c"), history=lists("i"), x=lists("c"))
    assert found.schema.shares == {"history": "item", "x": "city"}
    why = "its values are lists; it shares the embeddings of 'item', which has 50 of its 50 values"
    assert column(found, "history").why == why


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("history", "movie_id"),
        ("liked", "movie_id"),
        ("movies", "movie_id"),
        ("user_domains", "domain"),
        ("x", None),
        ("scores", None),
    ],
)
def test_codes_are_equal_in_any_column_so_that_names_must_agree(name, owner):
    columns = {
        "user": integers(names("", 400)),
        "domain": integers(names("", 300)),
        "movie_id": integers(names("", 300)),
        name: integers(lists("", 300)),
    }
    assert proposal(**columns).schema.shares == ({name: owner} if owner else {})


def test_ids_far_apart_are_telling_whatever_the_names():
    far = {f"{at}": str(10**6 + 7919 * at) for at in range(50)}
    x = [[far[one] for one in row] for row in lists("")]
    found = proposal(y=[far[one] for one in names("")], x=x)
    assert found.schema.shares == {"x": "y"}


def test_small_enumerations_never_share_by_themselves():
    hours = integers(names("", 24))
    found = proposal(hour=hours, hours=integers(lists("", 24)), last_hour=hours)
    assert found.schema.shares == {}
    words = [RANDOM.choice(["yes", "no", "maybe"]) for _ in range(ROWS)]
    assert proposal(x=words, y=[[one] for one in words]).schema.shares == {}


def test_a_column_shares_that_of_which_its_name_says_more():
    found = proposal(last_item=names("i"), item=names("i"), history=lists("i"))
    assert found.schema.shares == {"last_item": "item", "history": "item"}
    assert proposal(origin=names("i"), dest=names("i")).schema.shares == {}


def test_what_is_asked_for_goes_before_what_is_seen():
    columns = {"item": names("i"), "city": names("c"), "history": lists("i"), "x": lists("c")}
    asked = Asked(shares=(("history", "city"), ("x", "")))
    found = proposal(**columns, asked=asked)
    assert found.schema.shares == {"history": "city"}
    assert "it shares the embeddings of 'city', as --shares asks" in column(found, "history").why
