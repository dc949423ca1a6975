"""The example in the docstring of every method runs as it stands there."""

import doctest

import pytest

from detoxbench import methods


@pytest.mark.parametrize("name", methods.names())
def test_the_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = methods.get(name)
    example = doctest.DocTestParser().get_doctest(cls.__doc__ or "", {}, name, None, None)
    assert len(example.examples) >= 3
    assert f'db.methods.create("{name}"' in example.docstring
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0, capsys.readouterr().out
