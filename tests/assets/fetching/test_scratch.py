"""Folders for work in progress are made while others, beside them, are removed."""

from concurrent.futures import ThreadPoolExecutor

from assets.fetching.disk import INCOMING, remove_scratch, scratch
from training.formats.storage import Storage


def test_a_folder_is_made_while_its_neighbours_are_removed(tmp_path):
    storage = Storage(str(tmp_path))

    def come_and_go(name: str) -> int:
        for _ in range(500):
            folder = scratch(storage, "web", name)
            (folder / "part").write_text(name)
            remove_scratch(folder)
        return 500

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(come_and_go, "abcd")) == 2000
    assert not (tmp_path / INCOMING).exists()
