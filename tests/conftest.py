"""What holds for every test."""

from __future__ import annotations

import os

import hypothesis

# Two workers share two cores, so a deadline would measure the other worker.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")

# Tests leave nothing in the user's cache folder; those of the cache name one of their own.
os.environ["MODEL_SURGERY_CACHE"] = "off"
