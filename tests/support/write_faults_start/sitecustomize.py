"""Loads the faults of writes into every Python process that has this folder on its PYTHONPATH."""

import os

if os.environ.get("LSEG_TEST_WRITE_FAULTS"):
    from tests.support.write_faults import install

    install()
if attempts := os.environ.get("LSEG_TEST_S3_ATTEMPTS"):
    from pipeline.storage import s3

    s3._ATTEMPTS = int(attempts)
