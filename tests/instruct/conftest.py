"""The tiny cohort's fixtures."""

from tiny_cohort import exams, records  # noqa: F401
