"""The benchmarks' readers on tiny folders in the official layout."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets.few_shot import open_few_shot
from pipeline.data.datasets.few_shot.base import shipped_lines
from pipeline.data.datasets.few_shot.coco import load_plain_pickle
from pipeline.data.datasets.few_shot.pascal import LIST_SIZES
from pipeline.data.pixels.checks import BadSample
from pipeline.errors import UserError


def save_png(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    if palette:
        image.putpalette([i // 3 for i in range(768)])
    image.save(path)


def save_jpg(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)


@pytest.fixture
def voc(tmp_path) -> Path:
    """Five pictures of VOC, and HSNet's list of fold 1."""
    names = [f"2007_00000{i}" for i in range(5)]
    for number, name in enumerate(names):
        save_jpg(tmp_path / "VOC2012/JPEGImages" / f"{name}.jpg", (6, 4))
        ids = np.zeros((4, 6))
        ids[:2, :3] = 6 + number  # bus, car, cat, chair, cow
        ids[3] = 255
        ids[2, 5] = 15
        save_png(tmp_path / "VOC2012/SegmentationClassAug" / f"{name}.png", ids, palette=True)
    lists = tmp_path / "splits/pascal/val"
    lists.mkdir(parents=True)
    lines = [f"{name}__{6 + number:02d}" for number, name in enumerate(names)]
    (lists / "fold1.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


class TestPASCAL:
    def test_a_thousand_episodes_over_and_over_the_list(self, voc):
        few_shot = open_few_shot("pascal-5i", str(voc), str(voc / "splits"))
        episodes = few_shot.episodes(1)
        assert len(episodes) == 1000
        assert [e.class_id for e in episodes[:6]] == [5, 6, 7, 8, 9, 5]
        assert episodes[7].image == "VOC2012/JPEGImages/2007_000002.jpg"
        assert "published: 451" in few_shot.notes[0]

    def test_border_is_ignored_and_other_classes_are_background(self, voc):
        few_shot = open_few_shot("pascal-5i", str(voc / "VOC2012"), str(voc / "splits"))
        image, mask = few_shot.read(few_shot.episodes(1)[2])
        assert image.shape == (4, 6, 3)
        assert mask.tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0] * 6, [255] * 6]

    def test_published_counts_and_folds(self, voc):
        few_shot = open_few_shot("pascal-5i", str(voc))
        assert LIST_SIZES == (346, 451, 725, 346)
        assert [few_shot.test_ids(f) for f in (0, 3)] == [(0, 1, 2, 3, 4), (15, 16, 17, 18, 19)]
        names = few_shot.class_names()
        assert [names[i] for i in few_shot.test_ids(3)] == [
            "pottedplant", "sheep", "sofa", "train", "tvmonitor",
        ]  # fmt: skip

    def test_the_lists_that_come_with_the_project_are_the_published_ones(self):
        # Lines, pictures and bytes of the published files; sorted by picture, then class.
        published = ((346, 345, 5536), (451, 433, 7216), (725, 587, 11600), (346, 326, 5536))
        for fold, (num_lines, num_pictures, num_bytes) in enumerate(published):
            lines = shipped_lines(f"pascal_val_fold{fold}.txt")
            assert len(lines) == LIST_SIZES[fold] == num_lines
            assert len({line[:11] for line in lines}) == num_pictures
            assert sum(len(line) + 1 for line in lines) == num_bytes
            assert lines == sorted(lines)
            assert {int(line[-2:]) for line in lines} == set(range(5 * fold + 1, 5 * fold + 6))

    def test_the_whole_protocol_on_empty_files(self, tmp_path):
        folder = tmp_path / "SegmentationClassAug"
        folder.mkdir()
        (tmp_path / "JPEGImages").mkdir()
        for fold in range(4):
            for line in shipped_lines(f"pascal_val_fold{fold}.txt"):
                (folder / f"{line[:11]}.png").touch()
        few_shot = open_few_shot("pascal-5i", str(tmp_path))
        for fold, size in enumerate(LIST_SIZES):
            episodes = few_shot.episodes(fold)
            assert len(episodes) == 1000
            assert len(set(episodes)) == size
            assert episodes[size] == episodes[0]
        assert not few_shot.notes

    def test_a_list_of_the_published_length_is_the_published_protocol(self, voc):
        name = "2007_000000"
        lines = [f"{name}__{1 + i % 5:02d}" for i in range(346)]
        (voc / "splits/pascal/val/fold0.txt").write_text("\n".join(lines))
        few_shot = open_few_shot("pascal-5i", str(voc), str(voc / "splits"))
        episodes = few_shot.episodes(0)
        assert not few_shot.notes
        assert [e.class_id for e in episodes[344:348]] == [4, 0, 0, 1]

    @pytest.mark.parametrize("line", ["2007_000000__05", "../../etc__06", "2007_000000"])
    def test_a_damaged_list_is_told(self, voc, line):
        (voc / "splits/pascal/val/fold1.txt").write_text(line)
        with pytest.raises(UserError, match=r"fold1\.txt: .*must be NAME__CLASS"):
            open_few_shot("pascal-5i", str(voc), str(voc / "splits")).episodes(1)

    def test_a_missing_picture_is_a_bad_sample(self, voc):
        few_shot = open_few_shot("pascal-5i", str(voc), str(voc / "splits"))
        episode = few_shot.episodes(1)[0]
        (voc / episode.image).unlink()
        with pytest.raises(BadSample, match="2007_000000"):
            few_shot.read(episode)


@pytest.fixture
def coco(tmp_path) -> Path:
    """Each class of fold 2 in three pictures; every mask also shows a class of another fold."""
    root = tmp_path / "COCO2014"
    lists = {}
    for number, class_id in enumerate(range(2, 80, 4)):
        names = [f"val2014/COCO_val2014_{100 * number + k:012d}.jpg" for k in range(3)]
        for name in names:
            save_jpg(root / name, (5, 3))
            ids = np.zeros((3, 5))
            ids[:, 0], ids[:, 1] = class_id + 1, 1
            save_png(root / "annotations" / name.replace(".jpg", ".png"), ids)
        lists[class_id] = names[::-1]
    (tmp_path / "splits/coco/val").mkdir(parents=True)
    (tmp_path / "splits/coco/val/fold2.pkl").write_bytes(pickle.dumps(lists))
    return tmp_path


class TestCOCO:
    def test_episodes_are_drawn_as_numpys_global_generator_draws_them(self, coco):
        few_shot = open_few_shot("coco-20i", str(coco), str(coco / "splits"))
        episodes = few_shot.episodes(2)
        lists = pickle.loads((coco / "splits/coco/val/fold2.pkl").read_bytes())
        # As HSNet's loader does without support pictures.
        np.random.seed(0)  # noqa: NPY002
        class_ids = [2 + 4 * v for v in range(20)]
        for episode in episodes:
            class_id = np.random.choice(class_ids, 1, replace=False)[0]  # noqa: NPY002
            name = np.random.choice(lists[class_id], 1, replace=False)[0]  # noqa: NPY002
            assert (episode.class_id, episode.image) == (class_id, f"COCO2014/{name}")
            assert episode.mask == f"COCO2014/annotations/{name[:-4]}.png"
        assert len(episodes) == 1000
        assert few_shot.episodes(2) == episodes
        assert few_shot.episodes(2, seed=1) != episodes
        assert "published: 14563" in few_shot.notes[0]

    def test_folds_interleave(self, coco):
        few_shot = open_few_shot("coco-20i", str(coco))
        assert few_shot.test_ids(2) == tuple(range(2, 80, 4))
        everything = [i for fold in range(4) for i in few_shot.test_ids(fold)]
        assert sorted(everything) == list(range(80))
        names = few_shot.class_names()
        assert (names[0], names[4], names[9], names[79]) == (
            "person", "aeroplane", "trafficlight", "toothbrush",
        )  # fmt: skip

    def test_masks_hold_the_class_plus_one(self, coco):
        few_shot = open_few_shot("coco-20i", str(coco), str(coco / "splits"))
        _, mask = few_shot.read(few_shot.episodes(2)[0])
        assert mask.tolist() == [[1, 0, 0, 0, 0]] * 3

    def test_without_lists_they_are_made_from_the_masks_and_a_note_says_so(self, coco):
        few_shot = open_few_shot("coco-20i", str(coco))
        episodes = few_shot.episodes(2)
        assert {e.class_id for e in episodes} == set(range(2, 80, 4))
        assert "not the published ones" in few_shot.notes[0]

    def test_a_pickle_that_would_run_code_runs_nothing(self, coco, tmp_path):
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (marker,))

        path = coco / "splits/coco/val/fold2.pkl"
        path.write_bytes(pickle.dumps({2: [Evil()]}))
        few_shot = open_few_shot("coco-20i", str(coco), str(coco / "splits"))
        with pytest.raises(UserError, match="only lists and strings are allowed"):
            few_shot.episodes(2)
        assert not marker.exists()
        with pytest.raises(ValueError, match="not a pickle"):
            load_plain_pickle(b"\x80\x04")

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x04})" + b"\x85" * 400_000 + b"Ns.",
            b"\x80\x02Nr\x00\x00\x00\x08.",
            b"\x80\x02}\x8a\x0a" + (2**70).to_bytes(10, "little") + b"]s.",
            b"\x80\x04\x96" + b"\xff" * 7 + b"\x0f.",
        ],
        ids=["nested key", "memo", "number", "length"],
    )
    def test_a_few_bytes_of_a_pickle_take_neither_memory_nor_the_process(self, data):
        with pytest.raises(ValueError, match=r"only lists and strings|too large|but only"):
            load_plain_pickle(data)

    def test_lists_that_hold_each_other_are_not_written_out(self, coco):
        names: list = ["x"]
        for _ in range(60):
            names = [names, names]
        path = coco / "splits/coco/val/fold2.pkl"
        path.write_bytes(pickle.dumps({2: names}))
        with pytest.raises(UserError, match="a list is no image's name"):
            open_few_shot("coco-20i", str(coco), str(coco / "splits")).episodes(2)

    def test_names_may_not_leave_the_root(self, coco):
        path = coco / "splits/coco/val/fold2.pkl"
        path.write_bytes(pickle.dumps({i: ["../../secret.jpg"] for i in range(2, 80, 4)}))
        few_shot = open_few_shot("coco-20i", str(coco), str(coco / "splits"))
        with pytest.raises(UserError, match="may not leave"):
            few_shot.read(few_shot.episodes(2)[0])


class TestFSS:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """All 240 test classes with ten pictures each, and one class of the training split."""
        names = open_names()
        for name in [*names, "ac_wall"]:
            folder = tmp_path / "FSS-1000" / name
            folder.mkdir(parents=True)
            for number in range(1, 11):
                (folder / f"{number}.jpg").touch()
                (folder / f"{number}.png").touch()
        return tmp_path

    def test_every_test_picture_is_one_episode(self, root):
        few_shot = open_few_shot("fss-1000", str(root))
        episodes = few_shot.episodes(0)
        assert len(episodes) == 2400
        assert len({e.image for e in episodes}) == 2400
        assert not few_shot.notes
        assert [e.class_id for e in episodes[:11]] == [760] * 10 + [761]
        assert episodes[0].image == "FSS-1000/abe's_flyingfish/1.jpg"
        assert episodes[1].mask == "FSS-1000/abe's_flyingfish/10.png"
        assert few_shot.test_ids(0) == tuple(range(760, 1000))
        assert few_shot.class_names()[761] == "accordion"

    def test_masks_are_foreground_from_128_on(self, tmp_path):
        folder = tmp_path / "FSS-1000/accordion"
        save_jpg(folder / "1.jpg", (3, 1))
        folder.mkdir(exist_ok=True)
        rgb = np.repeat(np.array([[127, 128, 255]], np.uint8)[..., None], 3, 2)
        Image.fromarray(rgb).save(folder / "1.png")
        few_shot = open_few_shot("fss-1000", str(tmp_path))
        (episode,) = few_shot.episodes(0)
        assert few_shot.read(episode)[1].tolist() == [[0, 1, 1]]
        assert "1 test images are there; published: 2400" in few_shot.notes[0]


def open_names() -> list[str]:
    from pipeline.data.datasets.few_shot.base import shipped_lines

    names = shipped_lines("fss_test_classes.txt")
    assert len(names) == 240
    return names


def test_a_root_of_something_else_is_told(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(UserError, match=r"roots\.pascal-5i=.*must hold JPEGImages.*leftImg8bit"):
        open_few_shot("pascal-5i", str(tmp_path))
