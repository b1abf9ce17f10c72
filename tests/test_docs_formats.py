"""docs/data_formats.md against the schemas of the code, and against files that the code has just
written.
"""

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.ablations.score import write_table
from assets.ablations.table import ALL, Scores, arms_table
from assets.annotations import catalogue, cells, readings, rows, tables, video_names, video_parts
from assets.annotations.build import build_catalogue
from assets.annotations.collect import collect_annotations
from assets.annotations.record import AnnotationRecord
from assets.captions import tables as captions
from assets.checkpoints import bill
from assets.conversations import cleaning, grouping
from assets.conversations import samples as conversations
from assets.conversations.export import export_llava_json
from assets.deployment.ablation import ARMS
from assets.deployment.settings import load_settings
from assets.evaluation import answers, compare, questions
from assets.evaluation.media import STAMPS as ASKED_MEDIA
from assets.features import quarantine
from assets.features.extract import common_metadata
from assets.features.jobs import VideoJob
from assets.features.options import ExtractionOptions
from assets.features.workers.backends import open_pyav
from assets.fetching.disk import INCOMING
from assets.fetching.table_rows import FAULTS
from assets.questions import build as asking
from assets.records.lineage import LINEAGE_NAME, Lineage, record_name
from assets.records.product_files import list_name, register_name
from assets.records.withdrawals import Withdrawal
from assets.shards.mixture_views import write_views
from assets.shards.part import INDEX, MANIFEST, part_folder
from assets.shards.writer import write_long_video_part
from assets.sources import base as sources
from assets.tracing.withdraw import Removal
from assets.videos import acquire
from model.atomic import TEMPORARY_PREFIX
from model.config import PRESETS
from model.media import refusals as media
from tests.pages import names_in, page
from tests.servers.clips import clip
from training import checkpoint_folder, run_folder, run_lock
from training.formats import feature_file as features
from training.formats import kinds, layout
from training.formats import sample as samples
from training.formats.receipts import DAMAGED
from training.formats.storage import Storage
from training.recipes import ShardInput
from training.run_folder import RunFolder
from training.run_identity import COUNTED, COUNTED_OF_RECIPE
from training.state import StepTotals, TrainState

FORMATS = page("docs/data_formats.md")
DEPLOYMENT = """
root: data
parts: 1
variants: [tiny]
annotations: {paths: [rows.jsonl]}
sources:
  lectures: {kind: drop, folder: dropped}
shards: {workers: 1}
"""


def arrow(schema: pa.Schema) -> dict[str, str]:
    """Column -> type as the page writes it."""
    listed = {field.name: field.type.value_type for field in schema if pa.types.is_list(field.type)}
    return {
        field.name: f"list of {listed[field.name]}" if field.name in listed else str(field.type)
        for field in schema
    }


def names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def keys_that_are_written(module: object) -> list[str]:
    """Keys of the dictionary that a module's code hands to ``write_json``, those of ``**name``
    included.
    """
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    assigned = {
        getattr(n.targets[0], "id", ""): n.value for n in nodes if isinstance(n, ast.Assign)
    }
    calls = [
        n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "write_json"
    ]

    def keys(value: ast.expr) -> list[str]:
        value = assigned[value.id] if isinstance(value, ast.Name) else value
        pairs = zip(value.keys, value.values, strict=True)
        return [name for key, inner in pairs for name in ([key.value] if key else keys(inner))]

    (call,) = calls
    return keys(call.args[1])


def reasons_of_reject() -> set[str]:
    """Every text under which the parser of rows rejects one."""
    trees = [
        ast.parse(inspect.getsource(module)) for module in (rows, cells, video_names, readings)
    ]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    rejecting = [call for call in calls if getattr(call.func, "id", "") == "RejectedRow"]
    return set(FAULTS) | {
        node.value
        for call in rejecting
        for argument in call.args
        for node in ast.walk(argument)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> SimpleNamespace:
    """A root with one video, made by the real steps: annotations, catalogue, acquisition, grouping,
    shards, mixture.
    """
    folder = tmp_path_factory.mktemp("formats")
    (folder / "deployment.yaml").write_text(DEPLOYMENT)
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({"video": "a", "question": f"{n}?", "answer": str(n)}) + "\n"
            for n in range(7)
        )
        + json.dumps({"video": "a", "question": "Why?", "answer": None})
    )
    (folder / "dropped").mkdir()
    (folder / "dropped/a.mp4").write_bytes(clip())
    settings = load_settings(folder / "deployment.yaml")
    storage, log = Storage(settings.root), [].append
    collect_annotations(storage, settings, log)
    build_catalogue(storage, settings, log)
    acquire.acquire_part(storage, settings, "lectures", "part0", log)
    grouping.group_part(storage, settings, 0, log)
    export_llava_json(storage, [0], log)
    write_long_video_part(storage, settings, 0, log)
    write_views(storage, [[ShardInput(kinds.LONG_VIDEO_KIND, 0)]])
    return SimpleNamespace(storage=storage, settings=settings, folder=folder)


def header_of_extraction(root: SimpleNamespace, tmp_path: Path) -> list[str]:
    """Keys of the header that the extraction of a real video writes, without an encoder."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    (encoder / "model.safetensors").write_bytes(b"")
    options = ExtractionOptions.of(root.settings.features, "tiny")
    (video,) = catalogue.present_videos(root.storage, root.settings, "part0")
    with open_pyav(
        root.storage.path(video.rel), size=32, min_frames=4, max_frames=99, max_pixels=1 << 20
    ) as opened:
        frames = len(list(opened))
        job = VideoJob(1, video, Path(video.rel), facts=opened.facts)
        header = job.header(common_metadata(options, encoder), opened.stats)
    writer = features.FeatureWriter(tmp_path / "file", frames, 1, 1)
    writer.write(np.zeros((frames, 1, 1), np.uint16))
    return list(writer.finish(np.zeros(frames, np.float32), header).metadata)


def record_of_step() -> list[str]:
    """Keys of a record of metrics, by the loop's own code on a CPU."""
    from training.metrics import step_record

    return list(step_record(1, 2, StepTotals(supervised=1), "images", {}, 1.0, 1.0, 0.1))


def result_of_run(tmp_path: Path) -> list[str]:
    return list(RunFolder(tmp_path, print).write_result(TrainState(), {}, "export", 1))


def table_of(heading: str) -> list[list[str]]:
    (table,) = _own(heading).tables()
    return table


def _own(heading: str):
    """A section without its subsections."""
    section = FORMATS.section(heading)
    return dataclasses.replace(section, text=re.split(r"^#", section.text, flags=re.M)[0])


def test_paths_are_those_that_the_code_uses():
    def shown(path: str) -> str:
        return path.replace("part0", "<part>")

    source = catalogue.snapshot_name("<source>", "<part>")
    used = {
        layout.ANNOTATIONS,
        layout.REJECTED_ANNOTATIONS,
        layout.reading("<key>"),
        layout.rejected_reading("<key>"),
        layout.VIDEO_PARTS,
        layout.PARTS,
        layout.WITHDRAWALS,
        layout.HELD_OUT,
        layout.removal("<source>/<id>"),
        source,
        source.replace(".parquet", ".journal.jsonl"),
        source.replace(".parquet", ".report.json"),
        f"{layout.VIDEOS}/<source>/<id>.mp4",
        layout.quarantined_video("<source>", "<id>"),
        layout.feature_file(layout.features("<variant>"), "<source>/<id>"),
        layout.feature_quarantine(layout.features("<variant>"), "<source>/<id>"),
        layout.feature_file(layout.short_video_features("<variant>"), "<path>"),
        layout.feature_quarantine(layout.short_video_features("<variant>"), "<path>"),
        *(layout.captions("<source>", name) for name in captions.FILES),
        layout.question_rows("<source>"),
        *(layout.questions("<source>", name) for name in asking.FILES),
        layout.model_answer("<key>").replace("/<k/", "/<letters>/"),
        layout.spent("<source>"),
        shown(grouping.conversations_name(0)),
        shown(grouping.rejected_name(0)),
        layout.CONVERSATIONS_JSON,
        f"{shown(part_folder('<kind>', 0))}/{INDEX}",
        f"{layout.STAGE3_MIXTURE}/<stream>/{INDEX}",
        *(
            f"{name}/annotations/<name>.json"
            for name in (layout.LLAVA_ONEVISION, layout.LLAVA_VIDEO)
        ),
        *(
            layout.collection_media(name, "<group>")
            for name in (layout.LLAVA_ONEVISION, layout.LLAVA_VIDEO)
        ),
        f"{layout.LLAVA_ONEVISION}/images/",
        f"{layout.LLAVA_VIDEO}/videos/",
        "checkpoints/<variant>/<stage>/<inputs>/",
        "checkpoints/<variant>/base/",
        "checkpoints/<variant>/vision_encoder/",
        f"{layout.ablation_folder('<variant>', '<arm>-<seed>', '<inputs>')}/",
        "evaluation/<variant>/",
        f"{layout.ablation_scores('<variant>')}/",
        record_name("<asset>[<partition>]"),
        list_name("<asset>[<partition>]"),
        register_name(layout.STAMPS, "<asset>[<partition>]", ".json"),
        ASKED_MEDIA,
        f"{DAMAGED}/<path>.<number>",
    }
    stated = {name for row in table_of("Where things lie")[1:] for name in names_in(row[0])}
    assert stated == used
    assert record_name("annotations").endswith("/all.json")
    assert f"`{TEMPORARY_PREFIX}`" in FORMATS.text
    assert f"`{INCOMING}/`" in FORMATS.text


def test_files_of_a_real_root_lie_where_the_page_says(root):
    stated = [name for row in table_of("Where things lie")[1:] for name in names_in(row[0])]
    patterns = [
        re.sub(r"<\w+>", "[^/]+", re.escape(name).replace(r"\<", "<").replace(r"\>", ">"))
        for name in stated
    ]
    beside = ("manifest.json", "shard.00000.mds", "shard.00001.mds")
    lost = [
        name
        for name in root.storage.list()
        if not any(re.fullmatch(pattern, name) for pattern in patterns)
        and Path(name).name not in beside
    ]
    assert lost == []


def test_accepted_columns_are_those_of_the_row_parser():
    stated = {
        names_in(name)[0]: tuple(names_in(accepted))
        for name, accepted in table_of("Annotations that come in")[1:]
    }
    assert stated == rows.FIELDS


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("annotations.parquet", tables.SCHEMA),
        ("video_parts.parquet", video_parts.SCHEMA),
        ("Rejected rows", tables.REJECTED_SCHEMA),
        ("Catalogue", catalogue.SCHEMA),
        ("Conversations", conversations.SCHEMA),
        ("Rows without a sample", cleaning.REJECTED_SCHEMA),
        ("Answers", answers.SCHEMA),
    ],
)
def test_columns_of_parquet_files_are_those_of_their_schema(heading, schema):
    stated = {names_in(name)[0]: kind for name, kind, _ in table_of(heading)[1:]}
    assert stated == arrow(schema)
    assert list(stated) == schema.names


def test_columns_of_shards_are_those_of_the_sample_schema():
    assert {names_in(name)[0]: kind for name, kind, _ in table_of("Shards")[1:]} == samples.COLUMNS
    assert f"Sample schema **{samples.SCHEMA_VERSION}**" in FORMATS.text
    (row,) = [row for row in table_of("Shards") if row[0] == "`modality`"]
    assert tuple(names_in(row[2])[:4]) == samples.MODALITIES
    assert [names_in(row[0])[0] for row in table_of("Kinds")[1:]] == list(kinds.KINDS)


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("The ledger", names(AnnotationRecord)),
        ("Quarantined videos", names(quarantine.Quarantined)),
        ("lineage.json", names(Lineage)),
        ("withdrawals.json", names(Withdrawal)),
        ("The record of a withdrawal", names(Removal)),
        ("Questions", names(questions.EvaluationQuestion)),
    ],
)
def test_keys_are_the_fields_of_their_dataclass(heading, keys):
    assert [name for row in table_of(heading)[1:] for name in names_in(row[0])] == keys


def test_keys_of_files_that_were_just_written_are_stated(root, tmp_path):
    storage = root.storage
    written = {
        "parts.json": list(storage.read_json(layout.PARTS)["parts"][0]),
        "Feature files": header_of_extraction(root, tmp_path),
        "videomarathon.json": list(storage.read_json(layout.CONVERSATIONS_JSON)[0]),
        "manifest.json": list(
            storage.read_json(f"{part_folder(kinds.LONG_VIDEO_KIND, 0)}/{MANIFEST}")
        ),
        "The mixture's manifest": list(storage.read_json(f"{layout.STAGE3_MIXTURE}/{MANIFEST}")),
        "A record of metrics.jsonl": record_of_step(),
        "result.json": result_of_run(tmp_path),
    }
    for heading, keys in written.items():
        assert {names_in(row[0])[0] for row in table_of(heading)[1:]} == set(keys), heading


def test_the_bill_of_a_run_has_the_stated_keys():
    source = inspect.getsource(bill.write_bill)
    written = re.findall(r'^        "([a-z ]+)": ', source, re.M)
    assert [name for row in table_of("bill.json")[1:] for name in names_in(row[0])] == written


def test_the_ledger_and_the_conversations_of_a_real_root_are_as_described(root):
    metadata = pq.read_schema(root.storage.local(layout.ANNOTATIONS)).metadata
    (key,) = metadata
    assert f"`{key.decode()}`" in FORMATS.section("The ledger").text
    (sample, *_) = pq.read_table(root.storage.local(grouping.conversations_name(0))).to_pylist()
    turns = orjson.loads(sample["conversations"])
    assert re.fullmatch(r"lectures/a#0-\d+", sample["id"])
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
    assert turns[0]["value"].startswith("<image>")
    assert (
        root.storage.read_json(f"{part_folder(kinds.LONG_VIDEO_KIND, 0)}/{INDEX}")["version"] == 2
    )


def test_reasons_and_statuses_are_those_of_the_code():
    def stated(heading: str) -> set[str]:
        (text,) = re.findall(r"^Reasons: (.*?)\.(?: Of|$)", _own(heading).text, re.M | re.S)
        return set(names_in(text))

    assert stated("Rejected rows") == reasons_of_reject()
    assert stated("Quarantined videos") == {*quarantine.REASONS, *media.REASONS}
    source = inspect.getsource(cleaning)
    texts = set(re.findall(r'"((?:stray|empty|video)[a-z ]* [a-z]+)"', source)) | {"duplicate"}
    assert stated("Rows without a sample") == texts
    statuses = {
        getattr(sources, name) for name in ("PENDING", "OK", "TRANSIENT", "EXHAUSTED", "PERMANENT")
    }
    statuses |= {sources.NEEDS_OPERATOR, sources.MANUAL_MISSING, sources.NOT_ASKED}
    assert {names_in(row[0])[0] for row in table_of("Statuses")[1:]} == statuses


def test_names_in_a_checkpoint_folder_are_those_of_the_code():
    stated = {name for row in table_of("Checkpoints")[1:] for name in names_in(row[0])}
    made = {*run_folder.RUN_FILES} - {"fingerprint"}
    others = {LINEAGE_NAME, run_lock.LOCK_NAME, run_lock.HOLDER_NAME, "damaged/", "earlier-1/"}
    for name in made | others:
        assert any(entry.startswith(name) for entry in stated), name
    text = _own("Checkpoints").text
    assert f"`{checkpoint_folder.COMMITTED_NAME}`" in text
    assert f"`{checkpoint_folder.STATE_NAME}`" in text
    identity = _own("The identity of a run").text
    for name in (*COUNTED, *COUNTED_OF_RECIPE, "micro_batch", "micro_tokens"):
        assert f"`{name}`" in identity, name


def test_numbers_of_feature_files_are_those_of_the_presets():
    text = _own("Feature files").text
    tiny, full = PRESETS["tiny"], PRESETS["3b"]
    assert f"`{features.FORMAT}`" in text
    assert f"takes {features.HEADER_ROOM} bytes" in text
    assert f"at least {full.memory.min_frames} where" in text
    flowing = re.sub(r"\s+", " ", text)
    frame_tokens = f"P is {full.memory.frame_tokens} ({tiny.memory.frame_tokens})"
    assert f"({tiny.memory.min_frames} for `tiny`); {frame_tokens}" in flowing
    assert f"C is {full.vision.hidden_size} ({tiny.vision.hidden_size})" in text
    hour = (
        3600 * (full.memory.frame_tokens * full.vision.hidden_size * 2 + 4) + features.HEADER_ROOM
    )
    assert f"{hour / 1e9:.2f} GB for `3b` and `7b`" in re.sub(r"\s+", " ", text)


def test_the_summary_of_an_evaluation_has_the_stated_keys():
    (_, _, rest) = FORMATS.text.partition("`summary.json` holds ")
    assert names_in(rest) == keys_that_are_written(compare)


def test_the_scores_of_arms_have_the_stated_fields():
    (_, _, rest) = FORMATS.text.partition("Of the ablations' arms: ")
    of_run, _, of_table = rest.partition("\n\n")[0].partition("`ablation/table.json`")
    fields = {field.name for field in dataclasses.fields(Scores)}
    assert fields | {ALL} == set(names_in(of_run.partition("It has ")[2]))
    scores = Scores("uniform-1", "v", {ALL: 1}, {ALL: 2}, 0.5)
    (row,) = arms_table(ARMS, [scores])
    storage = Storage("memory://arms")
    written = storage.read_json(write_table(storage, "tiny", ARMS, [scores]).file)
    assert row.keys() | written.keys() == set(names_in(of_table))


def test_no_table_of_the_page_is_unchecked():
    source = Path(__file__).read_text()
    for heading in FORMATS.headings()[1:]:
        if _own(heading).tables():
            assert f'"{heading}"' in source, heading
