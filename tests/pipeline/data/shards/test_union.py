"""Runs over shards whose labels are stored in different classes go by the classes' names."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.datasets.own import OwnDataset
from pipeline.data.ingest.augment import AugmentConfig
from pipeline.data.ingest.config import DataConfig
from pipeline.data.ingest.stream import CropLoader, build_mixture
from pipeline.data.prepare.config import PrepareConfig
from pipeline.data.prepare.run import prepare
from pipeline.data.shards.corpus import Corpus, SampleReader, open_corpus
from pipeline.data.shards.format import Manifest
from pipeline.data.shards.union import ids_in, label_problems, pixels_in, union_of
from pipeline.data.taxonomy import IGNORE, Taxonomy, universal
from pipeline.data.taxonomy.labelling import OwnClass, in_native, in_universal, of_classes
from pipeline.errors import UserError
from pipeline.training.questions.labels import training_labels
from tests.jobs.test_prepare_labels import write_shop
from tests.support.crops import random_crop

UNIVERSAL = in_universal("ade20k", relabelled=False).taxonomy
SHOP = of_classes(
    "shop", [OwnClass(0, "parcel", "parcel"), OwnClass(3, "wall", "wall")], "universal"
).taxonomy


def manifest(taxonomy: Taxonomy, **pixels: int) -> Manifest:
    """One without shards; pixels of classes by name."""
    counts = tuple(pixels.get(name.replace(" ", "_"), 0) for name in taxonomy.classes)
    classes = () if taxonomy == universal() else taxonomy.classes
    fingerprint = taxonomy.fingerprint
    return Manifest(
        1, "d", "train", taxonomy.name, fingerprint, "", {}, (), counts, (), (), classes
    )


def test_universal_shards_keep_the_universal_classes():
    manifests = {"a": manifest(UNIVERSAL), "b": manifest(UNIVERSAL)}
    assert union_of(manifests) is universal()
    assert ids_in(manifests["a"], universal()) is None


def test_universal_classes_come_first_then_what_datasets_add():
    ade, shop, plain = (manifest(t) for t in (in_native("ade20k").taxonomy, SHOP, UNIVERSAL))
    union = union_of({"shop": shop, "plain": plain})
    assert union.classes == (*universal().classes, "parcel")
    # In whatever order they come.
    with_ade = union_of({"ade20k": manifest(in_native("cityscapes").taxonomy), "shop": shop})
    assert with_ade.classes[:194] == universal().classes
    assert len(set(with_ade.classes)) == len(with_ade.classes)
    assert {"parcel", "traffic sign"} <= set(with_ade.classes[194:])
    alone = union_of({"ade20k": ade})
    assert alone.classes == ade.class_names


def test_shards_of_another_taxonomy_of_the_same_name_say_what_differs():
    other = replace(manifest(UNIVERSAL), taxonomy_fingerprint="0123456789abcdef")
    with pytest.raises(
        UserError, match=r"d/train: labels of another mseg-194 \(fingerprint '0123456789abcdef'"
    ):
        union_of({"d": other})
    assert label_problems(other)[0].startswith("labels of another mseg-194 (fingerprint '0123")


def test_stored_ids_become_those_of_the_class_with_the_same_name():
    city = manifest(in_native("cityscapes").taxonomy)
    union = union_of({"city": city, "shop": manifest(SHOP)})
    lut = ids_in(city, union)
    assert lut is not None
    assert (lut.shape, lut.dtype) == ((256,), np.uint8)
    for stored, name in enumerate(city.class_names):
        assert union.classes[lut[stored]] == name
    assert (lut[len(city.class_names) :] == IGNORE).all()
    parcel = ids_in(manifest(SHOP), union)
    assert parcel is not None
    assert parcel[:194].tolist() == list(range(194))
    assert union.classes[parcel[194]] == "parcel"


def test_pixels_are_counted_by_name():
    city = manifest(in_native("cityscapes").taxonomy, road=5, traffic_sign=2)
    shop = manifest(SHOP, road=3, parcel=4)
    union = union_of({"city": city, "shop": shop})
    counts = dict(zip(union.classes, pixels_in([city, shop], union).tolist(), strict=True))
    assert {name: n for name, n in counts.items() if n} == {
        "road": 8,
        "traffic sign": 2,
        "parcel": 4,
    }
    assert set(training_labels([city, shop], "present", union).names) == {
        "road",
        "traffic sign",
        "parcel",
    }


def test_too_many_classes_are_refused():
    many = {n: manifest(Taxonomy(n, tuple(f"{n}{i}" for i in range(150)))) for n in ("a", "b")}
    with pytest.raises(UserError, match=r"data\.shards: 300 classes .*a 150, b 150.*at most 255"):
        union_of(many)


def test_labels_of_an_unknown_taxonomy_are_refused():
    unknown = Manifest(1, "d", "train", "mseg-193", "f" * 16, "", {}, (), (0,) * 193, ())
    with pytest.raises(UserError, match=r"d/train: .*'mseg-193'.*convert the dataset again"):
        union_of({"d": unknown})


def test_the_validation_split_may_have_other_classes():
    of_train = Taxonomy("train", ("wall", "parcel", "road"))
    lut = ids_in(manifest(Taxonomy("val", ("road", "sky", "wall"))), of_train)
    assert lut is not None
    assert lut[:3].tolist() == [2, IGNORE, 0]
    assert (lut[3:] == IGNORE).all()


@pytest.mark.usefixtures("local_ray")
def test_samples_are_read_in_the_classes_of_the_corpus(tmp_path):
    write_shop(tmp_path / "shop")
    write_shop(tmp_path / "depot", table="id,name,universal\n254,goods,\n")
    out = str(tmp_path / "out")
    for name, space in (("shop", "universal"), ("depot", "native")):
        own = {name: OwnDataset(root=str(tmp_path / name), val_fraction=0.5)}
        prepare(PrepareConfig(own=own, out=out, taxonomy=space))
    corpus = open_corpus(out, "train")
    assert corpus.taxonomy.classes[194:] == ("Wall", "belt", "parcel", "goods")
    reader = SampleReader(corpus)
    for dataset, rows in (
        ("shop", (None, "wall", "conveyor_belt", "parcel", None)),
        ("depot", (None, "Wall", "belt", "parcel", None)),
    ):
        _, label = reader.read(dataset, 0)
        found = [label[row, 0] for row in (0, 3, 6, 10, 16)]
        wanted = [IGNORE if n is None else corpus.taxonomy.id_of(n) for n in rows]
        assert found == wanted
    assert_the_stream_has_these_ids(corpus, reader)
    of_shop = replace(corpus, wanted=Taxonomy("shop", ("parcel", "wall")))
    _, label = SampleReader(of_shop).read("depot", 0)
    assert set(np.unique(label)) == {0, IGNORE}


def assert_the_stream_has_these_ids(corpus: Corpus, reader: SampleReader) -> None:
    """Crops of the training stream are cut from labels in the classes of the corpus."""
    augment = AugmentConfig(crop_px=32, base_px=32)
    config = DataConfig(shards=corpus.uri, augment=augment, loader_threads=1)
    mixture = build_mixture(corpus, config, 4, seed=1)
    batch = CropLoader(corpus, mixture, config).load(mixture.rows(0, 4))
    seen = set()
    for row, label in zip(mixture.batch(0), batch["label"], strict=True):
        dataset = mixture.datasets[row.dataset]
        assert np.array_equal(
            label, random_crop(*reader.read(dataset, row.sample), row.seed, augment)[1]
        )
        seen |= {dataset}
    assert seen == {"depot", "shop"}
    assert corpus.taxonomy.id_of("belt") in batch["label"]  # Stored as 1 by the depot.


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({}, None),
        ({"taxonomy_fingerprint": "0" * 16}, "fingerprint is not that"),
        ({"classes": (), "taxonomy_fingerprint": "0" * 16}, "does not know"),
        ({"classes": tuple(f"c{i}" for i in range(300))}, "300 classes: must be at most 255"),
        ({"classes": ("a", "b", "a")}, "come twice: a"),
        ({"classes": ("a", "b\u2028c")}, r"names a class 'b\\u2028c': a name must be one line"),
        ({"classes": ("a", " ")}, "names a class ' '"),
    ],
)
def test_what_is_wrong_with_the_classes_of_a_manifest(edit, words):
    found = label_problems(replace(manifest(Taxonomy("t", ("a", "b"))), **edit))
    assert any(words in problem for problem in found) if words else found == []


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\r", "a\x85b"])
def test_a_class_that_is_no_line_of_text_is_refused_before_a_training_begins(name):
    with pytest.raises(UserError, match=r"names a class .* must be one line"):
        union_of({"shop": manifest(Taxonomy("t", ("a", name)))})


def test_a_class_that_comes_twice_is_refused():
    with pytest.raises(UserError, match="names a class twice"):
        union_of({"shop": manifest(Taxonomy("t", ("a", "b", "a")))})
