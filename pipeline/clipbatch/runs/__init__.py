"""Operations on whole runs, as functions: plan, run, rescore, compact, make increments, submit."""
