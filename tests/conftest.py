"""What holds for all tests."""

from hypothesis import settings

# A commit is green or red, whenever it is tested. ``pytest --hypothesis-profile=explore`` draws other examples.
settings.register_profile("explore", derandomize=False)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
