import pytest


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Keep the results of these tests away from those of the reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DLOPT_STATIC", "1")
        yield
