from __future__ import annotations

import inspect
import pickle
import re

import pytest

from mmembed import errors

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_the_tree_drawn_at_the_head_is_the_tree_of_classes() -> None:
    drawn, path = {}, ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:[│├└─ ]{4})*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            path = [*path[: depth + 1], match[2]]
            drawn[match[2]] = path[-2]
    assert drawn == {kind.__name__: kind.__mro__[1].__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_comes_back_from_a_worker_with_its_message(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("what, rule, remedy")))
    assert type(error) is kind
    assert str(error) == "what, rule, remedy"
