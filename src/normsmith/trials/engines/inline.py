"""The process that asks: one trial after the other, without another process; for tests, debuggers, and models that cannot be imported."""

import time

from normsmith.trials.engines import Errand
from normsmith.trials.trial import run_trial


class InlineEngine:
    """This process."""

    ranks = 1

    def run(self, errand: Errand) -> None:
        """Run all trials in order."""
        for trial in errand.trials:
            while run_trial(trial, errand.folder, errand.root, errand.tell, errand.log) == "busy":
                time.sleep(1)
