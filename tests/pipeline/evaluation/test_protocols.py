"""What a protocol asks of shards, from their manifests alone."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.shards.format import Manifest, SampleRecord, ShardRecord
from pipeline.data.taxonomy import IGNORE, Taxonomy, universal
from pipeline.errors import UserError
from pipeline.evaluation.config import EvaluateConfig, OtherPolicy
from pipeline.evaluation.protocols import make_plan
from pipeline.storage.open import open_storage

TAXONOMY = Taxonomy("universal+shop", (*universal().classes, "crate", "pallet_jack"))
WORDS = (("sidewalk_pavement", "pavement"), ("crate", "box"), ("crate", "crate"), ("car", "car"))


def manifest(split: str, seen: dict[str, int]) -> Manifest:
    pixels = [seen.get(name, 0) for name in TAXONOMY.classes]
    samples = (SampleRecord("a", 0, 1024, 8, 8, 0),)
    return Manifest(
        2,
        "shop",
        split,
        TAXONOMY.name,
        TAXONOMY.fingerprint,
        "",
        {},
        (ShardRecord(f"shop-{split}-000000.tar", 10240, "0" * 64, samples),),
        tuple(pixels),
        (),
        classes=TAXONOMY.classes,
    )


def store(folder, made: Manifest) -> None:
    storage = open_storage(str(folder))
    storage.write(f"shop/{made.split}/manifest.json", made.to_json().encode())


def space_of_native(folder):
    config = EvaluateConfig(checkpoint="c", shards=str(folder), labels="native")
    (part,) = make_plan(config, ("car",)).parts
    return part.space


def test_a_datasets_own_words_are_asked(tmp_path):
    made = replace(manifest("val", {"car": 5}), own_words=WORDS)
    assert Manifest.from_json(made.to_json()) == made
    store(tmp_path, made)
    space = space_of_native(tmp_path)
    assert space.classes == ("sidewalk_pavement", "crate", "car")
    assert space.texts == ("pavement", "box", "crate", "car")
    assert space.text_class == (0, 1, 1, 2)
    ids = {name: TAXONOMY.id_of(name) for name in ("sidewalk_pavement", "crate", "car", "sky")}
    stored = np.array([*ids.values(), IGNORE], np.uint8)
    assert space.target(stored).tolist() == [0, 1, 2, IGNORE, IGNORE]


def test_shards_without_words_are_asked_by_what_any_split_shows(tmp_path):
    assert "own_words" not in manifest("val", {"car": 5}).to_json()  # As before there were any.
    store(tmp_path, manifest("train", {"pallet_jack": 3}))
    store(tmp_path, manifest("val", {"car": 5}))
    space = space_of_native(tmp_path)
    assert (space.classes, space.texts) == (("car", "pallet_jack"), ("car", "pallet jack"))


def test_own_words_go_with_one_protocol_alone(tmp_path):
    store(tmp_path, manifest("val", {"car": 5}))
    config = EvaluateConfig(checkpoint="c", shards=str(tmp_path), labels="native")
    with pytest.raises(UserError, match="labels=native: has no effect on protocol native-names"):
        make_plan(replace(config, protocol="native-names"), ())


def test_unseen_classes_may_be_asked_among_themselves(tmp_path):
    store(tmp_path, manifest("val", {"car": 5, "crate": 3, "pallet_jack": 2}))
    config = EvaluateConfig(checkpoint="c", shards=str(tmp_path), labels="unseen-alone")
    (part,) = make_plan(config, ("car",)).parts
    assert part.space.texts == ("crate", "pallet jack")
    stored = np.array([TAXONOMY.id_of(name) for name in ("crate", "pallet_jack", "car")], np.uint8)
    assert part.space.target(stored).tolist() == [0, 1, IGNORE]
    with pytest.raises(UserError, match="pixels of other classes do not count"):
        make_plan(replace(config, other=OtherPolicy(policy="prompts")), ("car",))


def test_trained_labels_may_have_to_win_by_a_constant(tmp_path):
    store(tmp_path, replace(manifest("val", {"car": 5}), own_words=WORDS))
    config = EvaluateConfig(
        checkpoint="c",
        shards=str(tmp_path),
        labels="native",
        calibration=2.5,
        other=OtherPolicy(policy="prompts"),
    )
    (part,) = make_plan(config, ("Car", "box")).parts
    assert part.space.texts == ("pavement", "box", "crate", "car", "other")
    assert part.space.offsets == (0, -2.5, 0, -2.5, -2.5)
    assert "calibrated-2.5" in config.variant
    assert make_plan(replace(config, calibration=0.0), ("car",)).parts[0].space.offsets == ()
    with pytest.raises(UserError, match="calibration=1: has no effect on protocol pascal-5i"):
        EvaluateConfig(checkpoint="c", protocol="pascal-5i", calibration=1.0)
