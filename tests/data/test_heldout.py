import pytest
from hypothesis import given
from hypothesis import strategies as st

from chopjax.data.chat import Chat
from chopjax.data.heldout import HASHES, SMALLEST, Drawn, Rule, divided, end_of, hash_of, workable

LONG = 100 * SMALLEST


def drawn(*shares: float, characters: int = LONG, divisible: bool = True) -> Drawn:
    """Documents whose hashes are these shares of all hashes."""
    return Drawn(divisible, tuple((int(share * HASHES), characters) for share in shares))


@pytest.mark.parametrize(
    ("text", "fraction", "end"),
    [
        ("One line.\nTwo.\n\nThree lines are here.\n\nFour.\nFive.", 0.3, "Four.\nFive."),
        ("One.\r\n\r\nTwo.\r\n\r\nThree.", 0.3, "Three."),
        ("one two\nthree four\nfive six", 0.4, "five six"),
        ("one two three four", 0.5, "three four"),
        ("水水水水水水水水水水", 0.2, "水水"),
        ("aaaaaaaae\u0301aaa", 0.3, "e\u0301aaa"),
        ("a\n\n" + "b" * 100, 0.1, "b" * 10),  # a paragraph far from the place is not used
    ],
)
def test_the_end_begins_at_a_paragraph_line_or_word_near_the_share(text, fraction, end):
    assert text[end_of(text, fraction) :] == end


@given(st.text(min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_both_parts_hold_text_and_make_up_the_document(piece, fraction):
    text = piece * 2 * SMALLEST
    rule = Rule(fraction, frozenset(), frozenset([hash_of(text)]))
    (one, first), (other, last) = rule.parts(text)
    assert (one, other) == ("train", "heldout") and first + last == text
    if min(fraction, 1 - fraction) * len(text) >= SMALLEST:
        assert min(len(first), len(last)) >= SMALLEST // 2 - 1


def test_a_divided_text_is_held_out_whole_where_it_cannot_be_divided_or_a_source_keeps_it_out():
    text = "word " * LONG
    hashed = frozenset([hash_of(text)])
    assert list(Rule(0.01, hashed, hashed).parts(text)) == [("heldout", text)]
    chat = Chat(text, ())
    assert list(Rule(0.01, frozenset(), hashed).parts(chat)) == [("heldout", chat)]


def test_texts_are_divided_only_where_a_side_would_be_empty():
    assert divided([drawn(0.005, 0.7), drawn(0.8)], 0.01, False) == frozenset()
    assert divided([drawn(0.7)], 0.01, True) == frozenset()
    both = divided([drawn(0.7), drawn(0.8, divisible=False)], 0.01, False)
    assert both == {int(0.7 * HASHES)}
    assert divided([drawn(0.3), drawn(0.8)], 0.5, False) == {int(0.3 * HASHES)}  # the first has nothing to train on
    assert divided([drawn(0.7, characters=SMALLEST * 100 - 1)], 0.01, False) is None
    assert divided([drawn(0.3, divisible=False)], 0.5, True) is None


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.tuples(st.integers(0, HASHES - 1), st.integers(1, 3 * SMALLEST)), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=3,
    ),
    st.floats(1e-6, 0.999),
)
def test_a_fraction_that_is_named_works_and_none_is_missed(found, fraction):
    sources = [Drawn(divisible, tuple(documents)) for divisible, documents in found]
    share = workable(sources, fraction, False)
    if share is not None:
        assert divided(sources, share, False) is not None
    else:
        tried = [number / 997 for number in range(1, 997)]
        assert all(divided(sources, value, False) is None for value in tried)


def test_the_fraction_named_has_few_digits():
    short = [drawn(*(0.0371 + 0.1 * number for number in range(9)), characters=9)]
    assert workable(short, 0.01, False) == 0.04
    assert workable([drawn(0.7, characters=4 * SMALLEST)], 0.01, False) == 0.26
    assert workable([drawn(0.7, characters=SMALLEST)], 0.01, False) is None
