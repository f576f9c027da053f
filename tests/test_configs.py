"""Every experiment file gives a locked config that the code can use."""

import importlib
import pkgutil

import pytest

import configs
from bvit.config import differences, flatten, parse_arguments, to_dict, words
from bvit.experiment import prepare

NAMES = sorted(module.name for module in pkgutil.iter_modules(configs.__path__))
ON_PHOTOS = {
    "vit_mask": ("", "photos"),
    "cnn_blur": ("", "model=googlenet,train=blur", "resnet50_dilated", "model=vgg11_bn"),
    "pretrained": (),  # needs weights
    "finetune": (),  # likewise, but below they are drawn
    "vit_blur": (),  # likewise
    "deblur_or_not": (),  # likewise
}


def test_every_experiment_is_tried_here():
    assert set(NAMES) == set(ON_PHOTOS)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_is_an_error(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    with pytest.raises(AttributeError, match="batch_size"):
        config.train.batchsize = 3


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_says_how_to_run_it(name):
    assert f"python -m bvit.main --config=configs/{name}.py" in (
        importlib.import_module(f"configs.{name}").__doc__
    )


@pytest.mark.parametrize(
    ("name", "arguments"), [(n, a) for n, several in ON_PHOTOS.items() for a in several]
)
def test_its_pieces_fit_together(name, arguments):
    config = importlib.import_module(f"configs.{name}").get_config(arguments)
    with config.unlocked():
        config.eval.batch_size = config.train.batch_size = 64
    experiment = prepare(config)
    assert experiment.num_classes == 16
    assert experiment.total_steps > 100


@pytest.mark.parametrize(
    ("model", "init_from", "policies"),
    [
        (
            "vit_small_patch16_224",
            "hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
            ("cluster:0.5", "cluster:0.33"),
        ),
        ("resnet50", "hf:timm/resnet50.tv_in1k", ("keep",)),
        ("vgg19", "hf:timm/vgg19.tv_in1k", ("keep",)),
    ],
)
def test_fine_tuning_fits_together_but_for_the_weights(model, init_from, policies):
    config = importlib.import_module("configs.finetune").get_config(f"model={model},data=photos")
    assert config.init_from == init_from and not config.init_head
    config.init_from = ""
    experiment = prepare(config)
    assert tuple(policy.label for policy in experiment.train_policies) == policies
    assert experiment.optimizer is not None and experiment.total_steps >= 20_000
    if len(policies) > 1:
        assert config.train.sandwich
        assert set(policies) < {policy.label for policy in experiment.policies}
    imagenet = importlib.import_module("configs.finetune").get_config(f"model={model}")
    assert imagenet.init_head and imagenet.data.name == "imagenet2012"


@pytest.mark.parametrize("policy", ["keep", "cluster:0.5"])
def test_fine_tuning_on_blur_tests_what_it_trains(policy):
    config = importlib.import_module("configs.vit_blur").get_config(
        f"train=blur,policy={policy},data=photos"
    )
    assert config.init_from == "hf:timm/deit_tiny_patch16_224.fb_in1k" and not config.init_head
    config.init_from = ""
    experiment = prepare(config)
    assert [trained.label for trained in experiment.train_policies] == [policy]
    assert config.train.condition == "blur" and experiment.total_steps > 0
    assert {"keep", policy} <= {tested.label for tested in experiment.policies}


def test_arguments_by_place_and_by_name():
    assert parse_arguments("", data="photos") == {"data": "photos"}
    assert parse_arguments("folder", data="photos") == {"data": "folder"}
    assert parse_arguments("train=mix,model=vgg19", model="resnet50", train="blur") == {
        "model": "vgg19",
        "train": "mix",
    }
    with pytest.raises(ValueError, match="did you mean 'model'"):
        parse_arguments("modle=vgg19", model="resnet50")


def test_lists_of_names():
    assert words("keep,merge:31") == ("keep", "merge:31")
    assert words("('keep', 'zero')") == ("keep", "zero")
    assert words("keep") == ("keep",)
    assert words("") == ()


def test_differences_leave_out_how_a_run_is_computed():
    old = to_dict(importlib.import_module("configs.vit_mask").get_config())
    new = to_dict(importlib.import_module("configs.vit_mask").get_config())
    new["mesh"]["data"], new["seed"], new["train"]["condition"] = 2, 7, "blur"
    changed = {"seed": (0, 7), "train.condition": ("sharp+blur+region", "blur")}
    assert differences(old, new) == changed
    assert flatten(new)["mesh.data"] == 2
