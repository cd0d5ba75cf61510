"""Around a run: report page, doctor, tune, parity, init, demo, fetch."""
