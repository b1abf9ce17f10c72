"""Scores of checkpoints: questions in one neutral form, answers, and what they add up to."""
