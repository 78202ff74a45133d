"""Options of a ported trainer."""

import pytest

from rayapp.compat.ported_train import typed
from rayapp.errors import BadRequest

CONFIG = {"max_epochs": 50, "flip": True, "val_split": 0.2, "dataset": ["CacheDataset", "Dataset"]}


def test_options_have_the_type_of_their_defaults_and_a_choice_its_first_value():
    assert typed(CONFIG, {}) == {"max_epochs": 50, "flip": True, "val_split": 0.2, "dataset": "CacheDataset"}
    sent = {"max_epochs": "3", "flip": "false", "val_split": "0.5", "dataset": "Dataset"}
    assert typed(CONFIG, sent) == {"max_epochs": 3, "flip": False, "val_split": 0.5, "dataset": "Dataset"}


@pytest.mark.parametrize(("name", "value"), [("max_epochs", "many"), ("flip", "perhaps")])
def test_an_option_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(BadRequest, match=name):
        typed(CONFIG, {name: value})
