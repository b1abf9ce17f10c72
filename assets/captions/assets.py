"""Captions of own videos that no row asks about yet."""

import dagster as dg

from assets.automation.rules import BY_HAND, RETRY_NETWORK
from assets.deployment.graph import CAPTIONS_POOL
from assets.deployment.partitions import asked_source_partitions
from assets.deployment.resources import Deployment
from assets.endpoints.options import ENDPOINT
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    publish,
)
from assets.records.rendering import column_schema, table
from training.formats import layout
from training.formats.receipts import describe_files


@dg.asset(
    partitions_def=asked_source_partitions,
    group_name="questions",
    kinds={"parquet", "openai"},
    owners=OWNERS,
    tags=BY_HAND,
    pool=CAPTIONS_POOL,
    retry_policy=RETRY_NETWORK if CAPTIONS_POOL == ENDPOINT else None,
    code_version=CODE_VERSION,
    check_specs=[
        check_spec(
            "described",
            "captions",
            "Few clips were set aside without a caption (`questions.most_aside`).",
            asked_source_partitions,
        )
    ],
    description="""What is seen in a person's own videos: each clip of about half a minute from six
    sides, the events with their seconds, and the whole of each video.

Written by the vision-language model that the settings name (`questions.describer`: an endpoint, or
a checkpoint on this machine) for every video in the folder of a drop source of `questions.sources`.
It costs what the model costs, so it starts by hand, or with `fine_tune` where it was never made;
`questions.budget` bounds it. Every
answer is kept: whatever ends a run, materialize it again and it goes on from there, and new videos
cost only themselves. Clips without a usable answer are set aside with their reason.""",
)
def captions(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.captions.answerers import askers
    from assets.captions.build import describe_source
    from assets.captions.checks import described
    from assets.captions.tables import CLIP_SCHEMA
    from assets.records.columns import CAPTIONS

    settings, storage, source = deployment.settings(), deployment.storage(), context.partition_key
    with errors_for_people():
        mend_product(context, deployment)
        describer, writer = askers(storage, settings, source, context.log.info)
        report = describe_source(storage, settings, source, describer, writer, context.log.info)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs={},
        counts=report.counts,
        files=describe_files(storage, report.files),
        folder=layout.captions(source),
        config=report.config,
        checks=[described(report, settings)],
        metadata={
            "dagster/row_count": report.counts["clips"],
            "spent so far": describer.ledger.spent.sentence,
            "answers": table(
                [{"what": what, "number": n} for what, n in sorted(report.answers.items())]
            ),
            "videos": table(report.videos),
            "some clips": table(report.examples),
            **column_schema(CLIP_SCHEMA, CAPTIONS),
        },
    )
