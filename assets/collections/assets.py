"""The two LLaVA collections that stages 1 to 3 also train on."""

from collections.abc import Callable, Container

import dagster as dg

from assets.annotations.assets import GROUP, hub_collections
from assets.automation.rules import DATA, FOLLOW_CONTENT, RETRY_NETWORK
from assets.collections.collection import CollectionReport
from assets.collections.llava_video import collect_llava_video
from assets.collections.onevision import collect_onevision
from assets.deployment.graph import COLLECTIONS
from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.records.product_files import KnownFiles
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    publish,
    up_to_date_spec,
)
from assets.records.rendering import table
from training.formats import layout
from training.formats.storage import Storage

# The last argument: files that were set aside because they were damaged.
Collect = Callable[[Storage, Settings, Callable[[str], None], Container[str]], CollectionReport]


def make_collection(
    name: str, folder: str, watched: dg.AssetSpec, kind: str, collect: Collect, description: str
) -> dg.AssetsDefinition:
    """The asset of one of the LLaVA collections, fetched by `collect` into `folder`."""

    @dg.asset(
        name=name,
        deps=[watched],
        group_name=GROUP,
        kinds={"huggingface", kind},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FOLLOW_CONTENT,
        pool="download",
        retry_policy=RETRY_NETWORK,
        code_version=CODE_VERSION,
        check_specs=[
            up_to_date_spec(name),
            check_spec(
                "all_there",
                name,
                "The hub has every annotation file that the mixture names.",
                blocking=False,
            ),
        ],
        description=description,
    )
    def collection(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.collections.checks import all_there

        with errors_for_people():
            damaged = {found.path for found in mend_product(context, deployment)}
            report = collect(deployment.storage(), deployment.settings(), context.log.info, damaged)
        (commit,) = report.origins.values()
        yield from publish(
            context,
            deployment,
            version=report.version,
            inputs=report.origins | {watched.key.to_user_string(): commit},
            counts=report.counts,
            files=KnownFiles(deployment.storage(), name).describe(report.files),
            checks=[all_there(report)],
            folder=folder,
            metadata={
                "dagster/row_count": report.counts.get("rows", 0),
                "annotation files": table(report.table),
                "origins": report.origins,
            },
        )

    return collection


_ONEVISION = """LLaVA-OneVision: single images, several images and text, as annotation files beside
image files.

Only the annotation files that the mixture names (`assets/collections/mixtures.csv`, or the
settings' own) are fetched, with their images. Images keep the bytes that the hub serves. What the
hub does not have is listed."""
_VIDEO = """LLaVA-Video-178K: annotation files, and short videos, unpacked from their archives as
they stream in.

Only folders that the mixture names are fetched. Archives are never kept; what they hold is
checked on the way."""

# What a deployment does not train on is not in its graph.
collections = [
    make_collection(name, folder, hub_collections[name], kind, collect, description)
    for name, folder, kind, collect, description in (
        ("llava_onevision", layout.LLAVA_ONEVISION, "jpeg", collect_onevision, _ONEVISION),
        ("llava_video", layout.LLAVA_VIDEO, "mp4", collect_llava_video, _VIDEO),
    )
    if name in COLLECTIONS
]
