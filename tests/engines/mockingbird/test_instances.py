"""A second instance of a module runs the same functions on globals of its own."""

from __future__ import annotations

import types

from accelerator.engines.mockingbird.instances import instance

CODE = '''
"""What it is."""
_model = None

def load(value, *, twice=False):
    """It loads."""
    global _model
    _model = value * (2 if twice else 1)

def answer(n=3):
    return _model * n
answer.asked = 0
'''


def module() -> types.ModuleType:
    made = types.ModuleType("toy")
    exec(CODE, vars(made))
    return made


def test_each_has_its_own_model() -> None:
    first = module()
    first.load(2)
    second = instance(first, _model=5)
    assert (first.answer(), second.answer(), second.answer(n=1)) == (6, 15, 5)
    first.load(1, twice=True)
    assert (first.answer(), second.answer()) == (6, 15)
    second.load(7, twice=True)
    assert (first._model, second._model) == (2, 14)


def test_it_says_of_itself_what_the_first_one_says() -> None:
    first = module()
    second = instance(first)
    assert (second.__name__, second.load.__doc__, second.answer.asked) == ("toy", "It loads.", 0)
    assert second.load.__kwdefaults__ == {"twice": False}


def test_functions_from_elsewhere_stay_as_they_are() -> None:
    first = module()
    first.elsewhere = module().answer
    assert instance(first).elsewhere is first.elsewhere
