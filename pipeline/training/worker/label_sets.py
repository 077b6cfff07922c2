"""Which kind of label sets the steps of a run have."""

import torch

from model.text import TextEncoder
from pipeline.training.plan import RunPlan
from pipeline.training.questions.episodes import EpisodeQuestions
from pipeline.training.questions.questions import Questions


def label_sets_of(
    plan: RunPlan, encoder: TextEncoder, device: torch.device
) -> Questions | EpisodeQuestions:
    """The label sets of a run's steps: those of episodes where the run is few-shot."""
    if plan.is_few_shot:
        return EpisodeQuestions(plan.labels, encoder, device, plan.config.loss)
    return Questions(plan.config, plan.labels, encoder, device, plan.own_labels, plan.label_weights)
