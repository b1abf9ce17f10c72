"""What the columns of the Parquet tables hold, as the UI shows them."""

from __future__ import annotations

ANNOTATIONS = {
    "video": "source/id",
    "source": "one of the settings' sources",
    "id": "of the video, unique within its source",
    "question_id": "unique within the video",
    "question": "as asked; options stand in it",
    "answer": "never empty",
    "question_type": "as the data set names it",
    "url": "where the video can be fetched, where that is said",
    "sample_id": "rows that belong together by their origin; empty: they are grouped by hash",
    "turn": "place within sample_id",
    "duration": "seconds of the video, as stated",
    "part": "number of the part that the row belongs to",
}

CATALOGUE = {
    "video": "source/id",
    "source": "one of the settings' sources",
    "id": "of the video, unique within its source",
    "url": "from the annotations",
    "expected_duration": "seconds, from the annotations",
    "questions": "question-answer pairs about it in this part",
    "status": "pending, ok, transient, exhausted, permanent, needs_operator or manual_missing",
    "reason": "why not, in one word",
    "message": "why not, in a sentence",
    "attempts": "tries so far",
    "next_try_at": "seconds since 1970 before which it is left alone",
    "location": "where it was found: a URL, repository@commit:member, a dropped file",
    "path": "below the storage root",
    "size": "bytes",
    "sha256": "of the file",
    "duration": "seconds of picture, by its timeline",
    "packets": "pictures in the file",
    "codec": "of the picture",
    "width": "pixels",
    "height": "pixels",
    "damaged": "true: one of the places looked at gave no picture",
    "unmeasured": "true: nobody states how long it is, so that it may have been cut",
    "format": "what the downloader chose",
    "tool": "the downloader and its version",
    "updated_at": "seconds since 1970",
    "decided_by": "fingerprint of what decided the outcome; when that changes, it is tried again",
}

CONVERSATIONS = {
    "id": "of the sample, unique",
    "video": "source/id",
    "source": "one of the settings' sources",
    "duration": "seconds of the video",
    "conversations": 'JSON: turns {"from": "human" | "gpt", "value": text}',
    "question_ids": "of the pairs in it, in the order of the turns",
}

ANSWERS = {
    "id": "of the question",
    "task": "kind of question",
    "form": "how the answer is given: among options, in a word, freely",
    "duration": "seconds of the video",
    "prompt": "what the model read",
    "expected": "the right answer",
    "chosen": "the likeliest choice, or what was written",
    "generated": "what the model wrote by itself",
    "correct": "whether chosen is right",
    "written_correct": "whether what was written is right",
    "choices": "what could be chosen",
    "scores": "log-probability of each choice",
    "problem": "why the question could not be asked; it then counts neither way",
    "damage": "what is wrong with the video; empty where nothing shows",
}
