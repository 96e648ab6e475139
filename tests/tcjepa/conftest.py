from hypothesis import settings

# A busy machine is slow, not wrong: no test may fail for time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
