"""The configuration of a conversion to shards: `jobs/prepare_shards.py`, or a recipe's keys."""

from dataclasses import dataclass, field, fields

from pipeline.data.datasets.base import ALL_SPLITS, check_split_names
from pipeline.data.datasets.few_shot import FEW_SHOT_SETS
from pipeline.data.datasets.own import OwnDataset, check_own_name
from pipeline.data.taxonomy.labelling import LabelSpace
from pipeline.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class RootsConfig:
    """Where each dataset's official download lies, unpacked or as its archives: local or `s3://`."""

    ade20k: str | None = None
    """ADE20K of the SceneParse150 challenge: the folder with `images/` and `annotations/`."""
    bdd100k: str | None = None
    """BDD100K: semantic segmentation of the 10K images, as given away in 2018 or 2021."""
    cityscapes: str | None = None
    """Cityscapes: the folder with `leftImg8bit/` and `gtFine/`."""
    coco_panoptic: str | None = None
    """COCO 2017: images with panoptic annotations."""
    idd: str | None = None
    """IDD: part I, part II, or the folder that holds both."""
    mapillary: str | None = None
    """Mapillary Vistas: v1.2, or a v2.0 download that holds v1.2."""
    sunrgbd: str | None = None
    """SUN RGB-D: official with its toolbox, or as re-organised by ankurhanda or chrischoy."""

    @property
    def given(self) -> dict[str, str]:
        """The roots that are set, by dataset."""
        return {name: root for name, root in vars(self).items() if root is not None}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """A conversion to shards: datasets, output, label space, and workers."""

    roots: RootsConfig = field(default_factory=RootsConfig)
    """The datasets to convert."""
    own: dict[str, OwnDataset] = field(default_factory=dict)
    """Datasets of your own, by a name that you give each: `{shop: {root: DIR}}`."""
    few_shot: dict[str, str] = field(default_factory=dict)
    """Roots of few-shot benchmarks (`pascal-5i`, `coco-20i`, `fss-1000`) by name, such as
    `{pascal-5i: DIR}`; the training pairs of each class become a dataset."""
    few_shot_splits: str = ""
    """HSNet's `data/splits` folder, whose lists name the training pairs of `few_shot`."""
    out: str = ""
    """Folder for the shards: a local directory or `s3://bucket/prefix`."""
    splits: tuple[str, ...] | None = None
    """Splits to convert; by default train and val, as far as the roots have them, and test where
    a dataset of your own has it."""
    cityscapes_classes: int = 19
    """Cityscapes' classes: 19 as in its benchmark and in MSeg, or 34 for all of its labels."""
    taxonomy: LabelSpace = "universal"
    """Label set of the stored labels: MSeg's universal classes, or each dataset's own."""
    native: bool = False
    """Store the labels in the dataset's own ids too, as `<key>.native.png`."""
    relabel: str | None = None
    """MSeg's relabelling: a folder of tables `<dataset>.tsv.gz`, or a checkout of mseg-api."""
    ade20k_full: str | None = None
    """The full release of ADE20K (`ADE20K_2016_07_26`), whose segments `relabel` names; or `none`
    to leave ADE20K as it is."""
    short_side_px: int = 1080
    """Larger images are shrunk until their short side has this many pixels."""
    train_long_side: int = 0
    """Pixels of the long side that training uses at most: `base_px` x the largest scale (1040 in
    the recipes). Images of the train split that are at least half as large again are shrunk to
    it, and then cost about half as much to load; 0 keeps them. Other splits stay as they are."""
    jpeg_quality: int = 95
    """JPEG quality (1..100) of images that cannot keep their own compression."""
    samples_per_shard: int = 256
    """Samples in each tar; also the unit of work, of progress, and of what a crash loses."""
    max_bad_fraction: float = 0.001
    """The job fails when more than this share of a split's samples must be left out."""
    workers: int | None = None
    """Shards converted at once; by default one for each CPU of the cluster."""

    def __post_init__(self) -> None:
        if not self.out:
            raise UserError("out: not set; give the folder for the shards, local or s3://")
        given = self.roots.given
        if not given and not self.own and not self.few_shot:
            names = ", ".join(f"roots.{entry.name}" for entry in fields(self.roots))
            raise UserError(f"roots: none is set; give at least one of {names}, or own")
        self._check_few_shot()
        for name in self.own:
            check_own_name(name)
        for name, root in given.items():
            if not root.strip():
                raise UserError(f"roots.{name}: is empty; give a directory or s3:// address")
        self._check_splits()
        self._check_cityscapes()
        self._check_relabel()
        _check_range("short_side_px", self.short_side_px, 16, 65_500)
        if self.train_long_side:
            _check_range("train_long_side", self.train_long_side, 16, 65_500)
        _check_range("jpeg_quality", self.jpeg_quality, 1, 100)
        _check_range("samples_per_shard", self.samples_per_shard, 1, 1_000_000)
        _check_range("max_bad_fraction", self.max_bad_fraction, 0, 1)
        if self.workers is not None:
            _check_range("workers", self.workers, 1, 100_000)

    @property
    def tables(self) -> dict[str, str]:
        """The table of each dataset that is not to use its own; see `lookup_table`."""
        return {"cityscapes": "cityscapes34"} if self.cityscapes_classes == 34 else {}

    def _check_few_shot(self) -> None:
        for name in self.few_shot:
            if name not in FEW_SHOT_SETS:
                raise UserError(
                    f"few_shot.{name}: must be among {', '.join(FEW_SHOT_SETS)}"
                    + did_you_mean(name, FEW_SHOT_SETS)
                )
        if self.few_shot and not self.few_shot_splits:
            raise UserError(
                "few_shot_splits: not set; the training pairs are those of HSNet's lists: give its "
                "data/splits folder"
            )
        if self.few_shot_splits and not self.few_shot:
            raise UserError(
                f"few_shot_splits={self.few_shot_splits}: has no effect without few_shot: leave it "
                "out"
            )
        if self.few_shot and self.splits is not None and self.splits != ("train",):
            raise UserError(
                f"splits={list(self.splits)}: few_shot has training pairs only: give [train], or "
                "leave it out"
            )

    def _check_cityscapes(self) -> None:
        if self.cityscapes_classes not in (19, 34):
            raise UserError(f"cityscapes_classes={self.cityscapes_classes}: must be 19 or 34")
        if self.cityscapes_classes != 19 and self.roots.cityscapes is None:
            raise UserError(
                f"cityscapes_classes={self.cityscapes_classes}: has no effect without "
                "roots.cityscapes: set that, or leave this out"
            )

    def _check_relabel(self) -> None:
        if self.relabel is not None and self.taxonomy == "native":
            raise UserError(
                f"relabel={self.relabel}: turns segments into universal classes and has no effect "
                "with taxonomy=native: leave one of them out"
            )
        if self.relabel is not None and not self.roots.given:
            raise UserError(f"relabel={self.relabel}: has no effect without roots: leave it out")
        if self.ade20k_full is not None and (self.relabel is None or self.roots.ade20k is None):
            raise UserError(
                f"ade20k_full={self.ade20k_full}: has no effect without relabel and roots.ade20k: "
                "set both, or leave this out"
            )

    def _check_splits(self) -> None:
        if self.splits is None:
            return
        if not self.splits:
            raise UserError(f"splits=[]: give one or more of {', '.join(ALL_SPLITS)}")
        check_split_names(self.splits)
        if len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits=[{','.join(self.splits)}]: names a split twice")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value}: must be between {low} and {high}")
