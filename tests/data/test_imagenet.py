from bvit.data.imagenet import class_names, readable


def test_a_thousand_classes_in_imagenets_order():
    names = class_names()
    assert len(names) == 1000 == len(set(names.values()))
    assert list(names) == sorted(names)
    assert list(names.values())[:2] == ["tench", "goldfish"]
    assert list(names.values())[-1] == "toilet tissue"


def test_labels_are_made_readable():
    assert readable("n03394916") == "French horn"
    assert readable("checks") == "checks"
