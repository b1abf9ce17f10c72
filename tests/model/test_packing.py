"""The worked example of model/packing.py is true."""

import doctest

import torch

from model import packing


def test_the_example_of_six_tokens_is_what_the_code_does():
    names = {**vars(packing), "tensor": torch.tensor}
    result = doctest.testmod(packing, globs=names)
    assert result.attempted >= 7
    assert not result.failed
