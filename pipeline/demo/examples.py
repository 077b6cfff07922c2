"""Images for trying a model: scenes of the rendered world, or a photo that every machine has."""

import io
from pathlib import Path

import matplotlib
from PIL import Image

from model.stand_in import stand_in_semantics
from pipeline.data.pixels.checks import BadSample
from pipeline.data.taxonomy import label_text
from pipeline.demo.world import WORLDS, render_scene, world_classes
from pipeline.errors import UserError
from pipeline.inference.photos import decode_photo
from pipeline.inference.search import find_photos
from pipeline.serving.app import Example

MAX_EXAMPLES = 12
_SIDE_PX = 1600
_PHOTO = "sample_data/grace_hopper.jpg"
"""A portrait that the US Navy made, in the public domain, among matplotlib's own data."""
_PHOTO_WORDS = ("person", "uniform", "hat", "flag", "wall")


def rendered_examples(num_scenes: int = 6) -> list[Example]:
    """Scenes that the demo's training did not show, with the classes of each as words."""
    names = world_classes()
    vectors = dict(zip(names, stand_in_semantics([label_text(n) for n in names]), strict=True))
    found = []
    for index, dataset in enumerate(list(WORLDS)[:num_scenes]):
        scene = render_scene(dataset, "val", index, vectors, seed=20_000)
        classes = dict.fromkeys(r.universal_name for r in scene.regions if r.universal_name)
        words = tuple(label_text(name) for name in classes)
        found.append(Example(f"scene {index + 1}", _jpeg(Image.fromarray(scene.image)),
                             "image/jpeg", words))  # fmt: skip
    return found


def photo_example() -> list[Example]:
    """A photo in the public domain; none where matplotlib came without its data."""
    path = Path(matplotlib.get_data_path()) / _PHOTO
    if not path.is_file():
        return []
    return [Example("Grace Hopper", path.read_bytes(), "image/jpeg", _PHOTO_WORDS)]


def examples_of(folder: str) -> list[Example]:
    """The first images of a folder, as they are shown: upright, and no larger than a screen.

    Raises:
        UserError: It holds none, or one that cannot be read.
    """
    found = []
    for photo in find_photos((folder,)).photos[:MAX_EXAMPLES]:
        try:
            image = Image.fromarray(decode_photo(photo.read()))
        except (BadSample, OSError) as error:
            raise UserError(f"examples={photo.uri}: {error}: remove it from the folder") from None
        image.thumbnail((_SIDE_PX, _SIDE_PX))
        found.append(Example(Path(photo.path).stem, _jpeg(image), "image/jpeg"))
    return found


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
