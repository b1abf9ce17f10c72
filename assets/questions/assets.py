"""Question-answer rows about own videos that had none."""

import dagster as dg

from assets.automation.rules import BY_HAND, RETRY_NETWORK
from assets.captions.assets import captions
from assets.deployment.graph import QUESTIONS_POOL
from assets.deployment.partitions import asked_source_partitions, same_partition
from assets.deployment.resources import Deployment
from assets.endpoints.options import ENDPOINT
from assets.records.lineage import input_versions, product
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
from assets.records.rendering import column_schema, table
from training.formats import layout
from training.formats.receipts import describe_files


@dg.asset(
    deps=[dg.AssetDep(captions, partition_mapping=same_partition)],
    partitions_def=asked_source_partitions,
    group_name="questions",
    kinds={"parquet", "openai"},
    owners=OWNERS,
    tags=BY_HAND,
    pool=QUESTIONS_POOL,
    retry_policy=RETRY_NETWORK if QUESTIONS_POOL == ENDPOINT else None,
    code_version=CODE_VERSION,
    check_specs=[
        up_to_date_spec("questions"),
        check_spec(
            "balanced",
            "questions",
            "There are rows of either form, and the longest option is right no oftener than "
            "`questions.checks.longest_right` says. It only warns.",
            asked_source_partitions,
            blocking=False,
        ),
        check_spec(
            "judged",
            "questions",
            "A person judged a sample, and no more multiple-choice rows are wrong than in the "
            "published set, as far as the sample tells. It only warns.",
            asked_source_partitions,
            blocking=False,
        ),
    ],
    description="""Question-answer rows about a person's own videos, written from their captions:
    six topics and 22 tasks, as many open-ended as multiple-choice prompts.

Each row names the clips and seconds that show its answer. Rows that do not pass a check (answerable
without the video, contradicted by another clip, two right options and others) are set aside with
their reason in `rejected.parquet`. The others land by themselves: `annotations` reads them like
files of the landing folder. A sample waits for a person in `sheet.csv` and `frames.html`; a filled
sheet in `questions.judged` corrects the rows and gives the error rate. It costs what the model
costs, so it starts by hand, or with `fine_tune` where it was never made.""",
)
def questions(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.captions.answerers import askers
    from assets.questions.build import SCHEMA, ask_about_source
    from assets.questions.checks import balanced, judged
    from assets.records.columns import QUESTIONS

    settings, storage, source = deployment.settings(), deployment.storage(), context.partition_key
    with errors_for_people():
        mend_product(context, deployment)
        inputs = input_versions(storage, [product("captions", source)])
        [version] = inputs.values()
        _, writer = askers(storage, settings, source, context.log.info)
        report = ask_about_source(storage, settings, source, version, writer, context.log.info)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=describe_files(storage, report.files),
        folder=layout.questions(source),
        config=report.config,
        checks=[balanced(report, settings), judged(report)],
        metadata={
            "dagster/row_count": report.counts["rows"],
            "error rate": "; ".join(rate.sentence for rate in report.rates) or "nobody has judged",
            "spent so far": writer.ledger.spent.sentence,
            "answers": table(
                [{"what": what, "number": n} for what, n in sorted(report.answers.items())]
            ),
            "verdicts": table([{"verdict": v, "rows": n} for v, n in report.verdicts.items()]),
            "right options": table(report.places),
            "tasks": table(report.tasks),
            "some rows": table(report.examples),
            **column_schema(SCHEMA, QUESTIONS),
        },
    )
