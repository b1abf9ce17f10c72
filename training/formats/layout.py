"""Where everything lies below the storage root. The only place where these paths are spelled.

Names and small functions, no input or output. docs/data_formats.md describes what each file holds.
All paths are relative to the root, with `/` between their steps, as `Storage` takes them.
"""

from __future__ import annotations

# Collections: rooms of the root. The same names stand in the mixtures (`collection` column).
VIDEO_MARATHON = "VideoMarathon"
LLAVA_ONEVISION = "LLaVA-OneVision"
LLAVA_VIDEO = "LLaVA-Video-178K"
COLLECTIONS = (LLAVA_ONEVISION, LLAVA_VIDEO, VIDEO_MARATHON)

# Long videos, from the annotations to the shards.
ANNOTATIONS = f"{VIDEO_MARATHON}/annotations.parquet"
REJECTED_ANNOTATIONS = f"{VIDEO_MARATHON}/annotations.rejected.parquet"
READINGS = f"{VIDEO_MARATHON}/readings"
PARTS = f"{VIDEO_MARATHON}/parts.json"
VIDEO_PARTS = f"{VIDEO_MARATHON}/video_parts.parquet"
WITHDRAWALS = f"{VIDEO_MARATHON}/withdrawals.json"
REMOVALS = f"{VIDEO_MARATHON}/withdrawn"
CATALOGUE = f"{VIDEO_MARATHON}/catalogue"
VIDEOS = f"{VIDEO_MARATHON}/videos"
QUARANTINE = f"{VIDEO_MARATHON}/quarantine"
FEATURES = f"{VIDEO_MARATHON}/features"
CONVERSATIONS = f"{VIDEO_MARATHON}/conversations"
CAPTIONS = f"{VIDEO_MARATHON}/captions"
QUESTIONS = f"{VIDEO_MARATHON}/questions"
ANSWERS = f"{VIDEO_MARATHON}/answers"
CONVERSATIONS_JSON = f"{VIDEO_MARATHON}/jsons/videomarathon.json"
HELD_OUT = f"{VIDEO_MARATHON}/held_out.jsonl"

# Shards of all kinds, also those of the two LLaVA collections.
SHARDS = f"{VIDEO_MARATHON}/sharding"
MIXTURE = "hourllava_s3"  # the asset, and the name of its folder
STAGE3_MIXTURE = f"{SHARDS}/{MIXTURE}"

# Files of the two LLaVA collections.
ONEVISION_IMAGES = f"{LLAVA_ONEVISION}/images"
LLAVA_VIDEO_FILES = f"{LLAVA_VIDEO}/videos"
LLAVA_VIDEO_QUARANTINE = f"{LLAVA_VIDEO}/quarantine"
LLAVA_VIDEO_FEATURES = f"{LLAVA_VIDEO}/features"

# Ends the name of the record that says why a video has no features.
QUARANTINE_SUFFIX = ".quarantine.json"

CHECKPOINTS = "checkpoints"
LINEAGE = "lineage"
STAMPS = "stamps"  # facts of the file system, never part of a product


def reading(key: str) -> str:
    """The rows of one annotation file, as they were read."""
    return f"{READINGS}/{key}.parquet"


def rejected_reading(key: str) -> str:
    """The rows of one annotation file that were set aside when it was read."""
    return f"{READINGS}/{key}.rejected.parquet"


def collection_annotations(collection: str, annotation: str) -> str:
    """An annotation file of a collection, as the mixture names it."""
    return f"{collection}/annotations/{annotation}"


def collection_media(collection: str, group: str) -> str:
    """The list of the image or video files of one group of a collection, with their hashes."""
    return f"{collection}/files/{group}.files.json"


def collected(collection: str) -> str:
    """The record of what was collected of one of the LLaVA collections."""
    return f"{collection}/collected.json"


def catalogue(source: str, *steps: str) -> str:
    """The folder of a source in the catalogue, or a file in it (`steps`)."""
    return "/".join((CATALOGUE, source, *steps))


def quarantined_video(source: str, identifier: str) -> str:
    """A file that turned out not to be the video `source/identifier`."""
    return f"{QUARANTINE}/{source}/{identifier}.bin"


def captions(source: str, *steps: str) -> str:
    """The folder of what is seen in a source's own videos, or a file in it (`steps`)."""
    return "/".join((CAPTIONS, source, *steps))


def questions(source: str, *steps: str) -> str:
    """The folder of what is asked about a source's own videos, or a file in it (`steps`)."""
    return "/".join((QUESTIONS, source, *steps))


def question_rows(source: str) -> str:
    """The rows about a source's own videos that `annotations` reads."""
    return questions(source, "rows.parquet")


def model_answer(key: str) -> str:
    """What a model answered to one prompt."""
    return f"{ANSWERS}/{key[:2]}/{key}.json"


def spent(source: str) -> str:
    """What captions and questions of a source have cost."""
    return f"{ANSWERS}/{source}.spent.json"


def removal(video: str) -> str:
    """The record of what was removed with the video `source/id`."""
    return f"{REMOVALS}/{video}.json"


def features(variant: str) -> str:
    """The folder of a variant's features of long videos (`source/id`)."""
    return f"{FEATURES}/{variant}"


def short_video_features(variant: str) -> str:
    """The folder of a variant's features of short videos, named as below `LLAVA_VIDEO_FILES`."""
    return f"{LLAVA_VIDEO_FEATURES}/{variant}"


def feature_file(folder: str, video: str) -> str:
    """The features of one video, in a folder of features."""
    return f"{folder}/{video}.safetensors"


def feature_quarantine(folder: str, video: str) -> str:
    """Why one video has no features, in a folder of features."""
    return f"{folder}/{video}{QUARANTINE_SUFFIX}"


def conversations(part: str) -> str:
    """The samples of a part."""
    return f"{CONVERSATIONS}/{part}.parquet"


def rejected_conversations(part: str) -> str:
    """The rows of a part that are in no sample."""
    return f"{CONVERSATIONS}/{part}.rejected.parquet"


def shards(kind: str, part: str) -> str:
    """The folder with the shards of one kind and part."""
    return f"{SHARDS}/{kind}_{part}"


def base_checkpoint(variant: str) -> str:
    """Where stage 1 of a variant starts."""
    return f"{CHECKPOINTS}/{variant}/base"


def vision_encoder(variant: str) -> str:
    """The encoder that stage 2 of a variant trained; features are made with it."""
    return f"{CHECKPOINTS}/{variant}/vision_encoder"


def stage_folder(variant: str, stage: int, inputs: str) -> str:
    """One run of a training stage.

    Args:
        inputs: hash of what it was made from.
    """
    return f"{CHECKPOINTS}/{variant}/stage{stage}/{inputs}"


def ablation_folder(variant: str, arm: str, inputs: str) -> str:
    """One run of an arm of the ablations; `arm` with its seed, `inputs` as for a stage."""
    return f"{CHECKPOINTS}/{variant}/ablation/{arm}/{inputs}"


def ablation_scores(variant: str, *steps: str) -> str:
    """The folder with the answers and scores of the arms, or a file in it (`steps`)."""
    return "/".join((evaluation(variant), "ablation", *steps))


def evaluation(variant: str) -> str:
    """Answers and scores of a variant's checkpoints."""
    return f"evaluation/{variant}"
