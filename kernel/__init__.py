"""midflight.kernel"""
