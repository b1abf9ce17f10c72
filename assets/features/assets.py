"""SigLIP features of long videos."""

import dagster as dg

from assets.automation import DATA, FILL_AND_FOLLOW
from assets.checkpoints.assets import vision_encoder
from assets.lineage import input_versions, product
from assets.partitions import dimensions, same_part_any_source, same_variant, variant_and_part
from assets.reporting import CODE_VERSION, OWNERS, errors_for_people, picture, publish, table
from assets.resources import Deployment
from assets.videos.assets import videos


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
    description="""SigLIP features of every long video of one part, one safetensors file a video, at one frame a second.

The encoder is the one tuned in stage 2 of the same variant, unless the settings name another. Files whose video and
encoder are unchanged are recognised by content and not made again. Videos that cannot be decoded are quarantined with
their reason and cost nothing else.""",
)
def features(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.features.extract import extract_part
    from assets.videos.catalogue import present_videos

    settings, storage, keys = deployment.settings(), deployment.storage(), dimensions(context)
    variant, part = keys["variant"], keys["part"]
    with errors_for_people():
        inputs = input_versions(
            storage,
            [
                product("vision_encoder", variant),
                *(product("videos", f"{part}|{source}") for source in sorted(settings.sources)),
            ],
        )
        present = [(v.video, v.duration, v.sha256, v.rel) for v in present_videos(storage, settings, part)]
        encoder = storage.local_folder(f"checkpoints/{variant}/vision_encoder")
        report = extract_part(storage, settings, variant, present, encoder, context.log.info)
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        metadata={
            "hours": report.hours,
            "bytes": report.bytes,
            "frames a second": report.frames_per_second,
            "outcomes": table(report.table),
            "throughput": table(report.throughput),
            "quarantined": table(report.quarantine),
            **({"frames": picture(report.frame_strip, "frames of one video")} if report.frame_strip else {}),
        },
    )
