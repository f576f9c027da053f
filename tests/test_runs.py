"""A trained run as the beginning of another."""

import jax
import numpy as np
import pytest
from trained import CLASSES, run_directory

from bvit import config as config_lib
from bvit import experiment as setup
from bvit import runs


@pytest.fixture
def config():
    found = config_lib.load(run_directory() / "config.json")
    found.init_from = str(run_directory())
    found.init_head = True
    return found


def test_a_run_begins_with_the_variables_of_another(config):
    variables = setup.build_initial(config, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, variables, runs.load(run_directory()).variables)


def test_a_new_head_for_other_classes_is_drawn_when_asked_for(config):
    with pytest.raises(ValueError, match=r"has 3 \(checks, dots, stripes, …\), the data 2 \(a, b"):
        setup.build_initial(config, ("a", "b"))
    config.init_head = False
    variables = setup.build_initial(config, ("a", "b"))
    trained = runs.load(run_directory()).variables["params"]
    assert variables["params"]["head"]["kernel"].shape == (32, 2)
    np.testing.assert_array_equal(
        variables["params"]["patch_embed"]["kernel"], trained["patch_embed"]["kernel"]
    )


def test_another_model_or_folder_is_told(config, tmp_path):
    config.model.depth = 2
    with pytest.raises(ValueError, match="not those of vit_tiny"):
        setup.build_initial(config, CLASSES)
    config.init_from = str(tmp_path)
    with pytest.raises(ValueError, match="is no run directory: it has no config.json"):
        setup.build_initial(config, CLASSES)
