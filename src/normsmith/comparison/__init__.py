"""What came of trials: results → statistics → verdict, tables, a page; and `compare`, which runs them first."""

import normsmith.trials  # noqa: F401  (which says what is missing, where something is)
