"""Tools around runs: report page, doctor, tune, parity, init, demo, fetch."""
