"""The newest checkpoint against the one before it, and against its blind self."""

from dataclasses import asdict

from assets.evaluation.checks import above_blind
from assets.evaluation.earlier import Scores, compared_with, earlier_scores, previous_scores


def scores(checkpoint: str, accuracy: float, questions: str = "q") -> Scores:
    return Scores(checkpoint, questions, {"all": accuracy})


def summary_after(*evaluations: Scores) -> dict:
    """What `summary.json` holds after these evaluations, one after another."""
    summary = None
    for now in evaluations:
        earlier = [asdict(scores) for scores in earlier_scores(summary, now)]
        summary = {"scores": asdict(now), "earlier": earlier}
    return summary


def test_the_first_checkpoint_has_nothing_to_be_compared_with():
    now = scores("first", 0.5)
    assert previous_scores(earlier_scores(None, now), now) is None
    assert previous_scores(earlier_scores({"accuracy": []}, now), now) is None


def test_a_checkpoint_is_compared_with_the_one_before_it():
    now = scores("third---", 0.7)
    before = previous_scores(
        earlier_scores(summary_after(scores("first", 0.9), scores("second--", 0.4)), now), now
    )
    assert before == scores("second--", 0.4)
    assert compared_with(before, now) == [
        {"questions": "all", "before (second--)": 0.4, "now (third---)": 0.7, "delta": 0.3}
    ]


def test_evaluating_the_same_checkpoint_again_keeps_the_comparison():
    first, second = scores("first", 0.4), scores("second", 0.7)
    again = summary_after(first, second, second)
    assert again == summary_after(first, second)
    assert previous_scores(earlier_scores(again, second), second) == first


def test_answers_to_other_questions_are_not_compared():
    now = scores("third", 0.7, questions="few")
    earlier = earlier_scores(
        summary_after(scores("first", 0.4, questions="few"), scores("second", 0.6)), now
    )
    assert previous_scores(earlier, now) == scores("first", 0.4, questions="few")


def test_a_lead_over_the_blind_checkpoint_counts_only_beyond_chance():
    assert above_blind(0.69, 0.16, asked=128).passed
    few = above_blind(0.69, 0.16, asked=3)
    assert (few.passed, few.blocks) == (False, False)
    assert not above_blind(0.16, 0.16, asked=128).passed
    assert not above_blind(0.0, 0.0, asked=0).passed
