"""The job that looks up one video in every product, for who has no shell on the machine."""

import dagster as dg
from pydantic import Field

from assets.deployment.resources import Deployment
from assets.records.publishing import errors_for_people
from assets.records.rendering import product_links, table
from assets.tracing.holdings import Holdings, find_holdings
from assets.tracing.names import find_video
from pipeline.why import why


class LookUpConfig(dg.Config):
    """What is looked up."""

    video: str = Field(description="the video: source/id, its id alone, or the path of its file")


@dg.op(name="look_up", description="Looks one video up in every product.")
def look_up_op(
    context: dg.OpExecutionContext, config: LookUpConfig, deployment: Deployment
) -> None:
    settings, storage = deployment.settings(), deployment.storage()
    with errors_for_people():
        holdings = find_holdings(storage, settings, find_video(storage, settings, config.video))
        told = why(storage, settings, holdings.video)
    for line in (*holdings.lines(), *told):
        context.log.info(line)
    context.add_output_metadata(describe(holdings, told))


@dg.job(
    name="look_up_video",
    executor_def=dg.in_process_executor,
    tags={"hourllava/step": "data"},
    description="Where one video is and why it is not elsewhere: every product that holds it, with "
    "links, and every checkpoint that was trained on it. In the launchpad, give `video`. Nothing "
    "is changed.",
)
def look_up_video() -> None:
    look_up_op()


def describe(holdings: Holdings, told: list[str]) -> dict[str, dg.MetadataValue]:
    """What is shown of a video: a table of what holds it, links, checkpoints, and its way."""
    products = list(dict.fromkeys(h.product for h in holdings.found if h.product))
    rows = [{"product": h.product, "holds": h.what, "where": h.path} for h in holdings.found]
    entries: dict[str, dg.MetadataValue] = {
        "video": dg.MetadataValue.text(holdings.video),
        "what holds it": table(rows),
        "its way": table([{"what is known": line.strip()} for line in told]),
    }
    if pages := product_links(products, len(products)):
        entries["pages"] = pages
    if holdings.trained or holdings.unknown:
        entries["checkpoints"] = table(
            [{"folder": name, "trained on it": "yes"} for name in holdings.trained]
            + [{"folder": name, "trained on it": "perhaps"} for name in holdings.unknown]
        )
    return entries
