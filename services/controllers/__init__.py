"""Controllers: services that hold a knob and move it. None of them imports torch."""
