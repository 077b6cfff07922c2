"""Which kind of label sets the steps of a run have."""

import torch

from model.text import OpenClipEncoder, TextEncoder
from pipeline.training.plan import RunPlan
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.questions import Questions


def label_sets_of(
    plan: RunPlan, encoder: TextEncoder, device: torch.device
) -> Questions | EpisodeQuestions:
    """The label sets of a run's steps: those of episodes where the run is few-shot.

    The encoder is asked nothing after that, and gives back its memory.
    """
    made: Questions | EpisodeQuestions
    if plan.is_few_shot:
        made = EpisodeQuestions(plan.labels, encoder, device, plan.config.loss)
    else:
        given = plan.labels, encoder, device, plan.own_labels, plan.label_weights
        made = Questions(plan.config, *given)
    if isinstance(encoder, OpenClipEncoder):
        encoder.release()
    return made
