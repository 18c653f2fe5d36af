"""From the order of a lesson to a teacher that runs on the device of the worker."""

import torch

from ensembles.bundle import load_bundle
from ensembles.teacher import Teacher
from search.assignments import Lesson
from search.paths import StudyPaths
from search.teaching import Teaching


def open_lesson(paths: StudyPaths, lesson: Lesson, device: torch.device) -> Teaching:
    """Load the teacher of a lesson, whose bundle lies beside the trainings that learn from it.

    Raises:
        BundleError: The bundle is gone or broken.
        EnsembleError: It votes, so it cannot teach.
    """
    predictor = load_bundle(paths.teacher(lesson.teacher)).predictor
    teacher = Teacher(
        networks=[network.to(device) for network in predictor.networks],
        combination=predictor.combination,
    )
    return Teaching(teacher=teacher, temperature=lesson.temperature, share=lesson.share)
