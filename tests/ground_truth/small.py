"""A task whose network is trained in a tenth of a second, and methods of which it is known how good they are."""

from captum_density.ground_truth import SignalBlock, SubjectVerbAgreement


class Small(SignalBlock):
    name = "small"
    training_examples = 300


class SmallSentences(SubjectVerbAgreement):
    name = "small sentences"
    training_examples = 40


def right(model):
    return lambda inputs: (inputs.abs() > 0.5).to(inputs) * inputs


def wrong(model):
    return lambda inputs: (inputs.abs() <= 0.5).to(inputs)
