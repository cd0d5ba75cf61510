"""Operations on whole runs, as functions: plan, run, rescore, compact, increments, submit."""
