"""midflight.tui"""
