"""Check a reward model of your own: does its score depend on padding or on batch mates?

    python check_my_model.py [PRETRAINED]

Without an argument a tiny random GPT-2 of the importable coati is checked, patches off and on.
"""

import sys

import coati_ext
from coati_ext.testing import assert_batch_invariant, assert_padding_invariant, tiny_reward_model


def check(model):
    try:
        assert_padding_invariant(model)
        assert_batch_invariant(model)
    except AssertionError as error:
        return f"no: {str(error).splitlines()[0]}"
    return "yes"


def load():
    if len(sys.argv) > 1:
        from coati.models import RewardModel

        return RewardModel(sys.argv[1]).eval()
    return tiny_reward_model("gpt2")


if __name__ == "__main__":
    print("is the score V(EOS) of the row alone?")
    print("  patches off:", check(load()))
    with coati_ext.applied():
        print("  patches on: ", check(load()))
