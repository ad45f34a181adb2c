"""A language model is not even looked for where it could not be finetuned."""

import sys

import pytest

from recbole_jepa4rec.model.language_model import load_language_model


def test_without_peft_nothing_is_loaded(monkeypatch):
    def locate(source):
        raise AssertionError("looked for the weights")

    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("recbole_jepa4rec.model.language_model.locate", locate)
    with pytest.raises(ValueError, match=r'pip install "recbole_jepa4rec\[llm\]"') as caught:
        load_language_model("no/such", "fp32")
    assert "\n" not in str(caught.value)
