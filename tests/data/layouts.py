"""Small data sets in their published layouts, each with the examples it holds."""

import base64
import functools
import io
import json
import pickle

import numpy as np
from PIL import Image

from mgie_jax.data.records import Example


def picture(seed, kind="JPEG", size=(24, 16), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, **options)
    return encoded.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def ipr2pr_folders(root):
    """Three pairs in two folders, one of them a level deeper, as InstructPix2Pix shards them."""
    expected = {}
    for folder, ids, edit in (("0000132", (31, 5), "Make it a painting"), ("shard-00/0000145", (7,), "add fog")):
        write(root / folder / "prompt.json", {"edit": edit, "input": "a lake"})
        for number in ids:
            files = [picture(number), picture(number + 100)]
            for half, content in enumerate(files):
                write(root / folder / f"{number}_{half}.jpg", content)
            id = f"{folder[-7:]}_{number}_0"
            expected[id] = Example(id, *files, edit, "")
    return {"train": expected}


def ipr2pr_prepared(root, rows=3):
    """What MGIE's notebook writes; the last example has no expressive instruction."""
    table, lines, expressive, expected = {"task": []}, b"", {}, {}
    for number in range(rows):
        id, files = f"0000132_{number}_0", [picture(number), picture(number + 100)]
        told = f"The lake is foggy, number {number}." if number < rows - 1 else ""
        row = {"input": id, "answer": f"0000132_{number}_1", "instruction": "add fog", "lineidx": len(lines)}
        table["task"].append([row])
        lines += b"\t".join(map(base64.b64encode, files)) + b"\n"
        if told:
            expressive[id] = {"instruction": "add fog", "expressive": told}
        expected[id] = Example(id, *files, "add fog", told)
    write(root / "ipr2pr.pkl", pickle.dumps(table))
    write(root / "ipr2pr.tsv", lines)
    write(root / "ipr2pr_expressive.json", expressive)
    return {"train": expected}


def magicbrush(root):
    """Training pairs in two row groups of a Parquet file, the test as a folder of turns."""
    import pyarrow
    from pyarrow import parquet

    expected, rows = {"train": {}, "test": {}}, []
    for number in range(3):
        files = [picture(number, "PNG"), picture(number + 100, "PNG")]
        before, after = ({"bytes": content, "path": "x.png"} for content in files)
        rows.append({"img_id": "77", "turn_index": number + 1, "source_img": before, "mask_img": before,
                     "instruction": f"add {number} frogs", "target_img": after})  # fmt: skip
        id = f"77-output{number + 1}"
        expected["train"][id] = Example(id, *files, f"add {number} frogs", "")
    (root / "data").mkdir(parents=True)
    path = root / "data" / "train-00000-of-00001-453c1a9ccc53b253.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)

    names = [f"242679-{name}.png" for name in ("input", "output1", "output2")]
    files = [picture(200 + i, "PNG") for i in range(3)]
    for name, content in zip(names, files, strict=True):
        write(root / "test" / "images" / "242679" / name, content)
    turns = [{"input": names[i], "mask": "m.png", "output": names[i + 1], "instruction": f"turn {i}"} for i in range(2)]
    write(root / "test" / "edit_turns.json", turns)
    for i in range(2):
        id = f"242679-output{i + 1}"
        expected["test"][id] = Example(id, files[i], files[i + 1], f"turn {i}", "")
    return expected


def evr(root):
    """A request for training, three for validation."""
    expected = {}
    for split, requests in (("train", ["brighter"]), ("valid", ["remove the leash", "no leash", "erase it"])):
        files = [picture(1), picture(2, "PNG")]
        row = {"img0": f"{split}_a.jpg", "img1": f"{split}_b.png", "sents": requests, "uid": f"Reddit_{split}"}
        write(root / "images" / row["img0"], files[0])
        write(root / "images" / row["img1"], files[1])
        write(root / "data" / f"{split}.json", [row])
        ids = [f"Reddit_{split}-{i}" for i in range(len(requests))]
        expected[split] = {id: Example(id, *files, text, "") for id, text in zip(ids, requests, strict=True)}
    return expected


def gier(root, name="splits/val_sess_3.json", split="val"):
    files = [picture(1), picture(2)]
    row = {"input": "t1/t1.jpg", "output": "t1_new.png", "request": "help", "detailed_request": float("nan"),
           "expert_summary": ["sharpen"], "amateur_summary": ["make it sharp", " sharper "]}  # fmt: skip
    write(root / "images" / "t1_t1.jpg", files[0])
    write(root / "images" / "t1_new.png", files[1])
    write(root / name, [row])
    requests = ("sharpen", "make it sharp", "sharper")
    return {split: {f"t1_new-{i}": Example(f"t1_new-{i}", *files, text, "") for i, text in enumerate(requests)}}


def ma5k(root, name="annotations/test_sess_1.json", split="test"):
    files = [picture(1), picture(2)]
    write(root / "images" / "3458_O.jpg", files[0])
    write(root / "images" / "3458_B.jpg", files[1])
    requests = ("increase the saturation", "more colors")
    write(root / name, [{"input": "3458_O.jpg", "output": "3458_B.jpg", "request": text} for text in requests])
    return {split: {f"3458_B-{i}": Example(f"3458_B-{i}", *files, text, "") for i, text in enumerate(requests)}}


LAYOUTS = [
    ("ipr2pr", ipr2pr_folders),
    ("ipr2pr", ipr2pr_prepared),
    ("magicbrush", magicbrush),
    ("evr", evr),
    ("gier", gier),
    ("gier", functools.partial(gier, name="GIER.json", split="full")),
    ("ma5k", ma5k),
    ("ma5k", functools.partial(ma5k, name="FiveK.json", split="full")),
]
