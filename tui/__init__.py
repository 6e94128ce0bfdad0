"""Terminal UI: one more client of the kernel; reads until it is armed, and its end never ends a run."""
