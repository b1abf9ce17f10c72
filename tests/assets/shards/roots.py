"""Small storage roots with real files in them, for tests of shards and of the loader that reads
them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from assets.conversations.grouping import conversations_name
from assets.conversations.samples import SCHEMA
from assets.deployment.settings import Annotations, Collections, Settings, Shards
from training.formats.storage import Storage

IMAGE_SET, TEXT_SET, MULTI_SET, VIDEO_SET = (
    "shapes.json",
    "chat.json",
    "multi_image/pairs.json",
    "clips.json",
)
MIXTURE = f"""kind,collection,annotation,fraction
llava_ov_si_onlyimg,LLaVA-OneVision,{IMAGE_SET},1
llava_ov_si_onlyimg,LLaVA-OneVision,{TEXT_SET},0.5
llavavideo_text,LLaVA-OneVision,{TEXT_SET},1
llavavideo_si,LLaVA-OneVision,{IMAGE_SET},1
llavavideo_mi,LLaVA-OneVision,{MULTI_SET},1
llavavideo_video,LLaVA-Video-178K,{VIDEO_SET},1
llavavideo_video,LLaVA-Video-178K,never_downloaded.json,1
"""


def quiet(_: str) -> None:
    """A log that nobody reads."""


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A small picture that differs from every other one."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def settings_for(root: Path, **shards: Any) -> Settings:
    (root / "mixtures.csv").write_text(MIXTURE)
    return Settings(
        root=str(root),
        annotations=Annotations(paths=["unused.json"]),
        sources={},
        collections=Collections(mixtures=root / "mixtures.csv"),
        shards=Shards(**{"workers": 1, "rows_per_shard": 8, **shards}),
    )


def make_root(root: Path, images: int = 120) -> Storage:
    """Annotation files of every LLaVA kind, their images, and names of short videos (which hold no
    real video).
    """
    vision, video = root / "LLaVA-OneVision", root / "LLaVA-Video-178K"
    for folder in ("images/set", "annotations/multi_image"):
        (vision / folder).mkdir(parents=True)
    for folder in ("annotations", "videos/a"):
        (video / folder).mkdir(parents=True)
    for number in range(images):
        kind = "PNG" if number % 5 == 0 else "JPEG"
        data = encoded(picture(number), kind)
        (vision / f"images/set/{number}.{kind.lower()}").write_bytes(data)
    names = [f"set/{number}.{'png' if number % 5 == 0 else 'jpeg'}" for number in range(images)]
    write(
        vision / "annotations" / IMAGE_SET,
        [
            {
                "id": f"i{n}",
                "image": name,
                "conversations": turns(f"<image>\nWhat is {n}?", f'It is "{n}" \\ {{'),
            }
            for n, name in enumerate(names)
        ],
    )
    write(
        vision / "annotations" / TEXT_SET,
        [{"id": f"t{n}", "conversations": turns(f"Say {n}.", f"{n} [ok]")} for n in range(100)],
    )
    write(
        vision / "annotations" / MULTI_SET,
        [
            {
                "id": f"m{n}",
                "image": [names[n], names[n + 1]],
                "conversations": turns("<image> against <image>?", "Different."),
            }
            for n in range(images - 1)
        ],
    )
    for number in range(40):
        (video / f"videos/a/{number}.mp4").write_bytes(b"not opened by the writer")
    write(
        video / "annotations" / VIDEO_SET,
        [
            {
                "id": f"v{n}",
                "video": f"a/{n % 40}.mp4",
                "conversations": turns("<image>\nWhat happens?", f"Scene {n}."),
            }
            for n in range(120)
        ],
    )
    return Storage(str(root))


def write(path: Path, rows: list[dict[str, Any]], indent: int | None = None) -> None:
    path.write_text(json.dumps(rows, indent=indent))


def make_conversations(
    storage: Storage, part: int, videos: int, samples: int, duration: float = 30.0
) -> None:
    """Grouped conversations of one part: `samples` of each of `videos` videos, as grouping
    leaves them.
    """
    names = [f"panda/p{part}v{number}" for number in range(videos) for _ in range(samples)]
    columns = {
        "id": [f"{name}#{part}-{number % samples}" for number, name in enumerate(names)],
        "video": names,
        "source": ["panda"] * len(names),
        "duration": [duration] * len(names),
        "conversations": [
            json.dumps(turns(f"<image>\nQuestion {n}?", f"Answer {n}.")) for n in range(len(names))
        ],
        "question_ids": [[f"q{n}"] for n in range(len(names))],
    }
    with storage.writing(conversations_name(part)) as path:
        pq.write_table(pa.table(columns, SCHEMA), path, row_group_size=16)


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
