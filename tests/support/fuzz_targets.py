"""Every reader of files that come from elsewhere, by the kind of its files."""

from tests.support.fuzz_downloads import archive, mat, own, roots
from tests.support.fuzz_models import checkpoint, ckpt
from tests.support.fuzz_pictures import jpeg, label, photo
from tests.support.fuzz_records import records
from tests.support.fuzz_shards import manifest, sample
from tests.support.fuzz_target import Build

KINDS: dict[str, Build] = {
    build.__name__: build
    for build in (
        jpeg, photo, label, manifest, sample, roots, own, mat, archive, checkpoint, ckpt, records,
    )
}  # fmt: skip
