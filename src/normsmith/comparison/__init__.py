"""What came of trials: results → statistics → verdict, tables, a page; and `compare`, which runs them first."""
