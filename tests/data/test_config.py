import pytest

from chopjax.data.config import DataConfig, TextSource
from chopjax.errors import UserError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "either path or hub"),
        ({"path": "a", "hub": "b/c"}, "either path or hub"),
        ({"path": "a", "format": "csv"}, "format is 'csv'"),
        ({"path": "a", "format": "hub"}, "needs a dataset id"),
        ({"hub": "b/c", "format": "jsonl"}, "a hub id takes no format"),
        ({"path": "a", "weight": 0.0}, "weight is 0.0"),
        ({"path": "a", "weight": float("nan")}, "weight is nan"),
        ({"path": "a", "max_documents": -1}, "max_documents is -1"),
        ({"path": "a", "messages": "m", "text_field": "body"}, "give either text_field or messages, not both"),
        ({"path": "a", "messages": "m", "format": "text"}, "plain text files hold no messages"),
        ({"path": "a", "prompt": "p"}, "prompt and completion go together; give both"),
        ({"path": "a", "completion": "c"}, "prompt and completion go together; give both"),
        ({"path": "a", "prompt": "p", "completion": "p"}, "prompt and completion are both 'p'; name two fields"),
        ({"path": "a", "prompt": "p", "completion": "c", "messages": "m"}, "give either messages, or prompt and compl"),
        ({"path": "a", "prompt": "p", "completion": "c", "text_field": "t"}, "give either text_field, or prompt and c"),
        ({"path": "a", "prompt": "p", "completion": "c", "format": "text"}, "hold no prompt and completion; give JSON"),
        ({"path": "a", "name": "../b"}, "name '../b'"),
    ],
)
def test_source_refuses(fields, said):
    with pytest.raises(UserError, match=said):
        TextSource(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 1}, "data.length is 1"),
        ({"heldout_fraction": 1.0}, "data.heldout_fraction is 1.0"),
        ({"heldout_fraction": float("nan")}, "data.heldout_fraction is nan"),
        ({"add_bos": "yes"}, "data.add_bos is 'yes'"),
        ({"threads": -1}, "data.threads is -1"),
    ],
)
def test_config_refuses(fields, said):
    with pytest.raises(UserError, match=said):
        DataConfig(**fields)


def test_labels_are_folder_names():
    assert TextSource(path="texts/books.jsonl").label == "books.jsonl"
    assert TextSource(path="texts/**/*.txt").label == "txt"
    assert TextSource(path="texts/").label == "texts"
    assert TextSource(hub="owner/set", subset="en").label == "owner-set-en-train"
    assert TextSource(path="..").label == "text"
    assert TextSource(path="a.txt", name="books").label == "books"
