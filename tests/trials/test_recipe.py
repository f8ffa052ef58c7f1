"""Recipes: what is right, and every way to be wrong, all at once."""

import json
import tomllib

import pytest
from trials.helpers_trials import SMALL, recipe

from normsmith.commands.compare import example
from normsmith.errors import InputError, OptionError
from normsmith.trials.recipe import Recipe, json_schema, read


def test_the_example_is_a_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(example())
    found = read(path)
    assert found == read(tomllib.loads(example()))
    assert len(found.normalizers) >= 6
    assert {2, 32} <= set(found.batch_sizes)
    assert len(found.all_seeds) == 3


def test_a_recipe_is_itself():
    found = recipe()
    assert read(found) is found
    assert read(found.to_dict()) == found
    assert recipe(seeds=[4, 7]).all_seeds == [4, 7]
    assert recipe().reference == "batch"


def test_all_mistakes_at_once_with_their_lines(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'normalizers = ["batch", "swichable"]\nbatch_size = [2]\nepochs = -1\n\n[training]\nclipp = 1.0\nema = 2.0\n'
        "[[optimizers]]\nlearning_rate = [0.1]\n"
    )
    with pytest.raises(OptionError) as caught:
        read(path)
    text = str(caught.value)
    lines = text.splitlines()
    assert lines[0] == f"{path} has 6 mistakes:"
    for line in (
        "line 1: normalizers[1]: the catalog expects the name of a method: got 'swichable'; did you mean 'switchable'",
        "line 2: batch_size is no setting; did you mean 'batch_sizes'?",
        "line 3: epochs",
        "line 6: training.clipp is no setting; did you mean 'clip'?",
        "line 7: training.ema",
        "line 9: optimizers[0].learning_rate",
    ):
        assert any(found.strip().startswith(line) for found in lines), f"{line!r} not in\n{text}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": None}, "expects either epochs or steps: got neither"),
        ({"steps": 3}, "expects either epochs or steps: got both"),
        ({"normalizers": ["batch", "batch"]}, "each of normalizers once: got batch several times"),
        ({"seeds": [1, 1]}, "each of seeds once: got 1"),
        ({"baseline": "layer"}, "baseline among the normalizers batch, group:num_groups=4: got 'layer'"),
        ({"statistics_batch": 3}, "batch_sizes that statistics_batch divides: got 20 and 3"),
        ({"datasets": ["digit"]}, "did you mean 'digits'"),
        ({"models": ["resnet21"]}, "did you mean 'resnet20'"),
        ({"normalizers": ["group:groups=2"]}, "did you mean 'num_groups'"),
        ({"normalizers": [{"backbone": "froze"}]}, "'frozen'"),
        ({"normalizers": []}, "at least 1 item"),
        ({"target_accuracy": 90}, "less than or equal to 1"),
        ({"schedule": {"name": "cosin"}}, "'cosine'"),
    ],
)
def test_what_is_wrong(change, says):
    with pytest.raises(OptionError) as caught:
        recipe(**change)
    assert says in str(caught.value)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("normalizers = [")
    with pytest.raises(InputError, match="expected to be TOML"):
        read(tmp_path / "broken.toml")
    with pytest.raises(OptionError, match="got a list"):
        read([1])  # type: ignore[arg-type]


def test_the_schema_names_every_setting():
    schema = json.dumps(json_schema())
    for name in Recipe.model_fields:
        assert f'"{name}"' in schema
    assert "Share of the steps in which it rises from 0" in schema
    assert SMALL.keys() <= Recipe.model_fields.keys()
