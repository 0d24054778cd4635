"""Photos in a bucket, edited into a bucket: what a local folder has in the end."""

import pytest

from mgie_jax.batch import store
from mgie_jax.batch.jobs import folder_jobs
from mgie_jax.paths import files
from tests.batch.painting import Painter, do, picture


def jobs_in(folder):
    return folder_jobs(folder, "brighter", 3, None)


def test_a_bucket_has_what_a_folder_has(bucket, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        picture(photos / f"p{i}.png", i)
        (bucket / f"photos/p{i}.png").write_bytes((photos / f"p{i}.png").read_bytes())
    (bucket / "photos/deeper/q.png").write_bytes(b"")
    do(jobs_in(photos), tmp_path / "out", Painter())

    class Stopped(Painter):
        def edit_prepared(self, rows, **given):
            if self.batches:
                raise RuntimeError
            return super().edit_prepared(rows, **given)

    out = bucket / "out"
    with pytest.raises(RuntimeError):
        do(jobs_in(bucket / "photos"), out, Stopped())
    assert sum(name.startswith("results-") for name in files(out)) == 1  # of one batch
    done = do(jobs_in(bucket / "photos"), out, Painter())
    assert (done.edited, done.skipped) == (2, 4)
    assert list(files(out)) == list(files(tmp_path / "out"))
    for name in files(out):
        if name.endswith((".png", ".jpg")):
            assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert list(store.read(out, store.RESULTS)) == [f"p{i}.png" for i in range(6)]
    assert do(jobs_in(bucket / "photos"), out, None).skipped == 6
    (bucket / "photos/p3.png").write_bytes((photos / "p2.png").read_bytes())  # another photo now
    assert do(jobs_in(bucket / "photos"), out, Painter()).edited == 1
