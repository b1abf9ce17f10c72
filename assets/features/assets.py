"""SigLIP features of long videos, and of stage 3's short videos where the settings say so."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.automation.rules import DATA, FILL_AND_FOLLOW
from assets.checkpoints.assets import vision_encoder
from assets.deployment.graph import SHORT_VIDEO_PARTS
from assets.deployment.launchpad import FeaturesLaunch
from assets.deployment.partitions import (
    all_partitions,
    dimensions,
    same_part_any_source,
    same_variant,
    variant_and_llava_part,
    variant_and_part,
)
from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.engines.call import call
from assets.records.lineage import input_versions, origin_name, product
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    own_name,
    publish,
    up_to_date_spec,
)
from assets.records.rendering import picture, table
from assets.records.withdrawals import require_active
from assets.videos.assets import videos
from training.formats import layout
from training.formats.kinds import KINDS, SHORT_VIDEO_KIND
from training.formats.storage import Storage

if TYPE_CHECKING:
    from assets.annotations.catalogue import PresentVideo
    from assets.features.options import VideoLength
    from assets.features.report import FeatureReport


def feature_checks(asset: str, partitions: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    """The checks of features."""
    return [
        up_to_date_spec(asset),
        check_spec(
            "complete",
            asset,
            "Every video of the part has a whole feature file, made from these bytes by this "
            "encoder, with frames that fit its duration and finite numbers, or a record why not; "
            "and few have such a record.",
            partitions,
        ),
        check_spec(
            "none_quarantined",
            asset,
            "No video is set aside because it could not be decoded. It only warns.",
            partitions,
            blocking=False,
        ),
    ]


@dg.asset(
    deps=[
        dg.AssetDep(videos, partition_mapping=same_part_any_source),
        dg.AssetDep(vision_encoder, partition_mapping=same_variant),
    ],
    partitions_def=variant_and_part,
    group_name="features",
    kinds={"safetensors"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL_AND_FOLLOW,
    pool="gpu",
    code_version=CODE_VERSION,
    check_specs=feature_checks("features", variant_and_part),
    description="""SigLIP features of every long video of one part, one safetensors file a video, at
    one frame a second.

The encoder is that of the same variant (`vision_encoder`), unless the settings name another. Files
whose video and encoder are unchanged are recognised by content and not made again. Videos that
cannot be decoded are quarantined with their reason and cost nothing else; the launchpad has a
switch to try them again.""",
)
def features(
    context: dg.AssetExecutionContext, deployment: Deployment, config: FeaturesLaunch
) -> Published:
    from assets.annotations.catalogue import present_videos

    settings, storage = config.applied(deployment.settings()), deployment.storage()
    keys = dimensions(context)
    variant, part = keys["variant"], keys["part"]
    with errors_for_people():
        require_active(storage, part)
        mend_product(context, deployment)
        encoder, origin = encoder_of(storage, settings, variant)
        inputs = input_versions(
            storage, [product("videos", f"{part}|{source}") for source in sorted(settings.sources)]
        )
        present = present_videos(storage, settings, part)
    made = _Extraction(config, settings, variant, "long", present, encoder, origin | inputs)
    yield from _extracted(context, deployment, made)


def make_short_video_features() -> dg.AssetsDefinition:
    """The asset of the features of short videos."""

    @dg.asset(
        deps=[
            dg.AssetDep(
                SHORT_VIDEO_KIND,
                partition_mapping=dg.SpecificPartitionsPartitionMapping(list(SHORT_VIDEO_PARTS)),
            ),
            dg.AssetDep(KINDS[SHORT_VIDEO_KIND].collection, partition_mapping=all_partitions),
            dg.AssetDep(vision_encoder, partition_mapping=same_variant),
        ],
        partitions_def=variant_and_llava_part,
        group_name="features",
        kinds={"safetensors"},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FILL_AND_FOLLOW,
        pool="gpu",
        code_version=CODE_VERSION,
        check_specs=feature_checks("short_video_features", variant_and_llava_part),
        description="""SigLIP features of every short video of one LLaVA part that stage 3 reads,
one safetensors file a video, of the frames that training would decode.

The encoder is that of the same variant (`vision_encoder`), which stage 3 does not tune. So its
steps read these files instead of decoding and encoding each video again for each of its samples.
All else is as for `features` of long videos.""",
    )
    def short_video_features(
        context: dg.AssetExecutionContext, deployment: Deployment, config: FeaturesLaunch
    ) -> Published:
        from assets.features.short_videos import short_videos

        settings, storage = config.applied(deployment.settings()), deployment.storage()
        keys = dimensions(context)
        variant, part = keys["variant"], keys["LLaVA part"]
        with errors_for_people():
            mend_product(context, deployment)
            encoder, origin = encoder_of(storage, settings, variant)
            read = [product(SHORT_VIDEO_KIND, part), KINDS[SHORT_VIDEO_KIND].collection]
            inputs = input_versions(storage, read)
            present = short_videos(storage, part)
        made = _Extraction(config, settings, variant, "short", present, encoder, origin | inputs)
        yield from _extracted(context, deployment, made)

    return short_video_features


kept_short_videos = [make_short_video_features()] if SHORT_VIDEO_PARTS else []


@dataclass(frozen=True, slots=True)
class _Extraction:
    """One part's features to be made.

    Attributes:
        settings: with what `config` changes.
        length: whether its videos are long or short.
        present: its videos.
        inputs: versions of what they are made from.
    """

    config: FeaturesLaunch
    settings: Settings
    variant: str
    length: "VideoLength"
    present: "list[PresentVideo]"
    encoder: Path
    inputs: dict[str, str]


def _extracted(
    context: dg.AssetExecutionContext, deployment: Deployment, made: _Extraction
) -> Published:
    """Make features, check them, and publish what came of it."""
    from assets.features.checks import complete
    from assets.features.extract import extract_part, reached
    from assets.features.options import FEATURE_FILES
    from assets.features.quarantine import forget_records

    storage, folder = deployment.storage(), FEATURE_FILES[made.length].folder(made.variant)
    with errors_for_people():
        if made.config.retry_quarantined:
            forget_records(storage, folder, [video.video for video in made.present])
        report = call(
            context, made.settings, "gpu",
            lambda: reached(storage, made.variant, made.present, made.length),
            extract_part,
            storage, made.settings, made.variant, made.present, made.encoder, context.log.info,
            own_name(context), made.length,
        )  # fmt: skip
        checks = complete(
            storage, made.settings, made.variant, made.present, made.encoder, made.length
        )
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=made.inputs,
        counts=report.counts,
        files=[video.entry(folder) for video in report.videos],
        checks=checks,
        config=made.config.chosen(),
        metadata=features_metadata(report),
    )


def encoder_of(storage: Storage, settings: Settings, variant: str) -> tuple[Path, dict[str, str]]:
    """The encoder that features of a variant are made with.

    Returns:
        Its folder on this machine, and its version under its name, for the lineage.

    Raises:
        FileNotFoundError: the variant's was not exported yet, and the settings name no other.
        ValueError: the folder that the settings name holds none.
    """
    from assets.features.extract import hash_encoder

    if settings.features.encoder:
        folder = Path(settings.features.encoder)
        return folder, {origin_name(storage, folder): hash_encoder(folder)}
    versions = input_versions(storage, [product("vision_encoder", variant)])
    return storage.local_folder(layout.vision_encoder(variant)), versions


def features_metadata(report: "FeatureReport") -> dict[str, Any]:
    """What the asset's page shows of an extraction."""
    return {
        "hours": round(report.hours, 3),
        "bytes": report.bytes,
        "frames": report.frames,
        "frames a second": report.frames_per_second or None,
        "seconds": report.seconds or None,
        "outcomes": table([row for row in report.table if row["videos"]]),
        "throughput": table(report.throughput),
        "quarantined": table(report.quarantine),
        "videos of the frame strip": table(report.strip_table),
        "frame strip": picture(
            report.frame_strip, "what the encoder saw of a few videos, from first to last"
        ),
    }
