from __future__ import annotations

import pickle
import re

import pytest

from accelerator import errors
from accelerator.errors import AcceleratorError, InvalidInput, InvalidOption, ProofFailed


def test_the_tree_is_as_drawn() -> None:
    """Each class of the docstring's tree, its parent by indentation, and nothing that is not drawn."""
    lines = [line[4:] for line in (errors.__doc__ or "").splitlines() if re.match(r"    [│├└ A]", line)]
    stack: list[tuple[int, str]] = []
    drawn = {}
    for line in lines:
        match = re.match(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line)
        assert match is not None
        depth, name, builtin = len(match[1]), match[2], match[3]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        drawn[name] = (stack[-1][1] if stack else "Exception", builtin)
        stack.append((depth, name))
    assert set(drawn) == set(errors.__all__)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases[0] == parent, name
        assert bases[1:] == ([builtin] if builtin else []), name


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_can_be_caught_as_one_and_says_what_it_is(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, AcceleratorError)
    assert kind.__doc__
    assert kind.__doc__.endswith(".")
    assert str(kind("what to do next")) == "what to do next"
    copy = pickle.loads(pickle.dumps(kind("across processes")))
    assert (type(copy), str(copy)) == (kind, "across processes")


def test_a_failed_proof_carries_its_report() -> None:
    report = {"passed": False, "kl": 2.0}
    error = ProofFailed("not faithful", report)
    assert error.report == report
    report["kl"] = 0.0
    assert error.report["kl"] == 2.0
    assert ProofFailed("without").report == {}
    assert pickle.loads(pickle.dumps(error)).report == {"passed": False, "kl": 2.0}


def test_invalid_input_is_a_value_error_to_those_who_do_not_know_us() -> None:
    with pytest.raises(ValueError, match="x"):
        raise InvalidInput("x")
    with pytest.raises(TypeError, match="x"):
        raise InvalidOption("x")
