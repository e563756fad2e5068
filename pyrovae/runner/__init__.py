"""Running a study: plan, train, measure, re-measure, draw."""
