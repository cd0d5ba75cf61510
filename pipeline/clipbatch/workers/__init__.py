"""Worker processes: start, supervise, schedule, isolate, place on devices and nodes."""
