import threading

import numpy as np
import pytest

from foveal.runtime.background_writer import BackgroundWriter


class Kept:
    def __init__(self, fail_at=None):
        self.bands, self.threads, self.fail_at = [], set(), fail_at

    def rows(self, band):
        if len(self.bands) == self.fail_at:
            raise OSError("disk full")
        self.threads.add(threading.current_thread().name)
        self.bands.append(band)


def test_bands_are_written_in_order_in_another_thread():
    writer = Kept()
    bands = [np.full((1, 2, 3), i) for i in range(5)]
    with BackgroundWriter(writer) as behind:
        for band in bands:
            behind.rows(band)
    assert [int(band[0, 0, 0]) for band in writer.bands] == list(range(5))
    assert writer.threads == {"foveal-writer"}


def test_an_error_of_the_writer_is_raised_where_bands_are_given():
    def give(writer, count):
        with BackgroundWriter(writer) as behind:
            for _ in range(count):
                behind.rows(np.zeros((1, 2, 3)))

    writer = Kept(fail_at=1)
    with pytest.raises(OSError, match="disk full"):
        give(writer, 50)
    assert len(writer.bands) == 1
    with pytest.raises(OSError, match="disk full"):
        give(Kept(fail_at=0), 1)


def test_after_an_error_elsewhere_the_thread_ends():
    with pytest.raises(KeyError, match="elsewhere"), BackgroundWriter(Kept()) as behind:
        raise KeyError("elsewhere")
    assert not behind._thread.is_alive()
