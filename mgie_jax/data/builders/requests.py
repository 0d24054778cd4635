"""Edits that people asked for on the web: EVR and GIER, and MA5k, retouched photos with requests written for them.

Each is a JSON list of pairs beside a folder `images`. A pair with several requests gives an example for each.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

from mgie_jax.data.builders.base import PairBuilder
from mgie_jax.data.builders.candidates import Candidate, Pair, Splits, first_file, member, read_files, read_rows
from mgie_jax.data.records import DataSetError

WHOLE = "full"  # the split of a list that nobody has split


class EVR(PairBuilder):
    """Expressing Visual Relationships via Language (Tan et al. 2019, arXiv 1906.07689): its Image Editing Request set.

    `{train,valid,test}.json` ([{"img0", "img1", "sents", "uid"}]), also in `data/` or `dataset/adobe/` as in the
    authors' repository. They hand out the pictures apart and name no folder: here `images/`, or else beside the lists.
    """

    name = "evr"
    DESCRIPTION = "Image Editing Request: edits asked for on the web, with one to three requests a pair."
    HOMEPAGE = "https://github.com/airsplay/VisualRelationships"

    def candidates(self) -> Splits:
        """Those of train, valid and test that are there."""
        splits = {}
        for split in ("train", "valid", "test"):
            folders = (self.source, self.source / "data", self.source / "dataset" / "adobe")
            if path := first_file(*(folder / f"{split}.json" for folder in folders)):
                places = (self.source / "images", path.parent / "images", path.parent)
                images = next(place for place in places if place.is_dir())
                splits[split] = [
                    _candidate(f"{row['uid']}-{i}", images, row["img0"], row["img1"], request)
                    for row in read_rows(path, ("img0", "img1", "sents", "uid"))
                    for i, request in enumerate(_listed(row["sents"]))
                ]
        return _found(splits, self.source, "train.json, valid.json or test.json")


class GIER(PairBuilder):
    """GIER, Grounded Image Editing Request (Shi et al., ACCV 2020).

    `splits/{train,val,test}_sess_3.json` as in the authors' T2ONet repository, or the whole list `GIER.json`
    (`IER2.json` in their notes), there the split "full": [{"input", "output", "expert_summary", "amateur_summary"}];
    pictures in `images/`, a slash in their names written as an underscore. Masks are not used.
    """

    name = "gier"
    DESCRIPTION = "GIER: edits asked for on the web, described by experts and amateurs."
    HOMEPAGE = "https://github.com/jshi31/T2ONet"

    def candidates(self) -> Splits:
        """The splits that are there, or the whole list."""
        lists = _lists(self.source, ("splits/{}_sess_3.json",), ("GIER.json", "IER2.json"))
        splits = {
            split: [
                _candidate(f"{Path(str(row['output'])).stem}-{i}", self.source / "images",
                           _flat(row["input"]), _flat(row["output"]), request)
                for row in read_rows(path, ("input", "output", "expert_summary", "amateur_summary"))
                for i, request in enumerate([*_listed(row["expert_summary"]), *_listed(row["amateur_summary"])])
            ]
            for split, path in lists.items()
        }  # fmt: skip
        return _found(splits, self.source, "GIER.json or splits/SPLIT_sess_3.json")


class MA5k(PairBuilder):
    """MA5k-Req: MIT-Adobe FiveK retouches with requests (Shi et al. 2021, arXiv 2106.13156).

    `annotations/{train,val,test}_sess_1.json` (or in `splits/`) as in the authors' T2ONet repository, or the whole
    list `FiveK.json`, there the split "full": [{"input": "0001_O.jpg", "output": "0001_A.jpg", "request"}]; pictures
    in `images/`.
    """

    name = "ma5k"
    DESCRIPTION = "MA5k-Req: photos of MIT-Adobe FiveK retouched by five experts, with requests."
    HOMEPAGE = "https://github.com/jshi31/T2ONet"

    def candidates(self) -> Splits:
        """The splits that are there, or the whole list."""
        lists = _lists(self.source, ("annotations/{}_sess_1.json", "splits/{}_sess_1.json"), ("FiveK.json",))
        splits = {}
        for split, path in lists.items():
            seen: Counter[str] = Counter()  # a retouch may have several requests, each in a row of its own
            splits[split] = []
            for row in read_rows(path, ("input", "output", "request")):
                stem = Path(str(row["output"])).stem
                id = f"{stem}-{seen[stem]}"
                seen[stem] += 1
                images = self.source / "images"
                splits[split].append(_candidate(id, images, row["input"], row["output"], row["request"]))
        return _found(splits, self.source, "FiveK.json or annotations/SPLIT_sess_1.json")


def _lists(source: Path, of_split: tuple[str, ...], whole: tuple[str, ...]) -> dict[str, Path]:
    """Split -> its list; the whole list where there are no splits."""
    lists = {
        split: path
        for split in ("train", "val", "test")
        if (path := first_file(*(source / pattern.format(split) for pattern in of_split)))
    }
    if not lists and (path := first_file(*(source / name for name in whole))):
        lists = {WHOLE: path}
    return lists


def _found(splits: Splits, source: Path, expected: str) -> Splits:
    if not splits:
        raise DataSetError(f"{source}: holds no {expected}")
    return splits


def _candidate(id: str, images: Path, before: Any, after: Any, request: Any) -> Candidate:
    return Candidate(id, functools.partial(_read, images, before, after, request))


def _read(images: Path, before: Any, after: Any, request: Any) -> Pair:
    return read_files(member(images, before), member(images, after), request)


def _listed(requests: Any) -> list:
    """The requests of a pair; one that is no list is a broken request, to be skipped under its own id."""
    return requests if isinstance(requests, list) else [requests]


def _flat(name: Any) -> Any:
    return name.replace("/", "_") if isinstance(name, str) else name
