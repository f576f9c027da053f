"""Trained models and published weights, evaluated on other data, conditions and policies."""

import json

import jax
import numpy as np
import pytest
from trained import CLASSES, run_directory, write_picture

from bvit import evaluate
from bvit.classify import classify
from bvit.data.folder import FolderSource
from bvit.data.relabelled import Relabelled
from bvit.evaluation.evaluator import label_rank
from bvit.experiment import assemble
from bvit.image.pixels import to_float
from bvit.run import Run

KNOWN = CLASSES[1:]  # the data has some of the classes that the model knows


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label, name in enumerate(KNOWN):
        for i in range(3):
            write_picture(folder / name / f"{i}.png", seed=50 + 10 * label + i)
    return folder


def test_a_run_is_evaluated_anew_beside_what_it_has(images, capsys):
    before = (run_directory() / "results.json").read_bytes()
    arguments = [f"--run={run_directory()}", f"--data={images}", "--policies=drop:5"]
    arguments += ["--conditions=sharp,gaussian:2", "--batch_size=8"]
    capsys.readouterr()
    evaluate.main(arguments)
    printed = capsys.readouterr().out
    assert "6 test images" in printed and "training" not in printed
    (folder,) = (run_directory() / evaluate.EVALUATIONS).iterdir()
    results = json.loads((folder / "results.json").read_text())
    cells = [(row["condition"], row["policy"], row["n"]) for row in results["rows"]]
    assert cells == [("sharp", "drop:5", 6), ("gaussian:2", "drop:5", 6)]
    assert (run_directory() / "results.json").read_bytes() == before

    run = Run(run_directory()).load()
    files = sorted(images.glob("*/*.png"))
    crops = to_float(np.stack([run.preprocess.crop(file.read_bytes()) for file in files]))
    labels = np.array([CLASSES.index(file.parent.name) for file in files])
    mean, std = run.preprocess.mean, run.preprocess.std
    logits = classify(run.model, run.variables, crops, "drop:5", mean=mean, std=std)
    answers = Run(folder).answers
    np.testing.assert_array_equal(answers.ranks["sharp", "drop:5"], label_rank(logits, labels))

    evaluate.main(arguments)
    assert "This run is finished" in capsys.readouterr().out


def test_an_evaluation_needs_nothing_of_the_machine_that_trained(images):
    run = Run(run_directory())
    with run.config.unlocked():
        run.config.profile.steps = (1, 2)
    options = evaluate._parser().parse_args([f"--run={run.path}", "--batch_size=9"])
    source = FolderSource("all", dir=images)
    devices = jax.devices()[:3]  # of which neither mesh.fsdp=8 nor 16 images of a batch are even
    config = evaluate.make_config(run, options)
    assert assemble(config, lambda c: (None, None, source), devices).total_steps == 0


def test_classes_are_found_by_their_ids_and_by_their_english_names(tmp_path):
    for name in ("golden retriever", "n02493509", "border_terrier"):
        write_picture(tmp_path / name / "0.png", 0)
    source = FolderSource("all", dir=tmp_path)
    ids = ("n02099601", "n02493509", "border terrier")
    found = Relabelled(source, ids)
    assert len(found) == 3 and found.class_names == ids
    assert [found[i]["label"] for i in range(3)] == [2, 0, 1]
    assert found.record_name(0) == source.record_name(0)
    numbered = Relabelled(source, ("0", "1", "2"))
    assert [numbered[i]["label"] for i in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="1 of the data's .* golden_retriever"):
        Relabelled(source, ids[1:])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--conditions=blurr"], "blur"),
        (["--policies=merg:7"], "did you mean 'merge'?"),
        (["--batch_size=0"], "eval.batch_size"),
        (["--data=nowhere"], "nowhere"),
        (["--weights=x"], "name one model"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, images, arguments, word):
    data = [] if arguments[0].startswith("--data") else [f"--data={images}"]
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([f"--run={run_directory()}", *data, *arguments])
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("bvit: ") and word in err
