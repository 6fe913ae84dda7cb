"""Random reads of a VHDX chain by a Python reader, timed by its own clock.

peers.py pyvhdi|dissect LEN SIZE STRIDE BASE ... TIP

Reads the whole disk once, LEN bytes at a time, and prints the reader's version. Then, for each line "FIRST
COUNT" on standard input, prints the seconds that these reads took, and the CRC-32 of their bytes. Read number
n of LEN bytes lies at n * STRIDE, counted in LENs and round and round in SIZE.
"""

import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path


def open_pyvhdi(paths):
    import pyvhdi

    chain = []
    for path in paths:
        image = pyvhdi.file()
        image.open(path)
        if chain:
            image.set_parent(chain[-1])
        chain.append(image)
    # All of them are kept: a parent that is let go is closed.
    return chain, chain[-1].read_buffer_at_offset, pyvhdi.get_version()


def open_dissect(paths):
    from dissect.hypervisor.disk.vhdx import VHDX

    disk = VHDX(Path(paths[-1]))

    def read(length, offset):
        disk.seek(offset)
        return disk.read(length)

    return disk, read, version("dissect.hypervisor")


def main():
    reader, length, size, stride, *paths = sys.argv[1:]
    length, size, stride = int(length), int(size), int(stride)
    keep, read, named = {"pyvhdi": open_pyvhdi, "dissect": open_dissect}[reader](paths)
    for offset in range(0, size, length):
        read(length, offset)
    print(named, flush=True)
    for line in sys.stdin:
        first, count = map(int, line.split())
        offsets = [number * stride * length % size for number in range(first, first + count)]
        start = time.perf_counter()
        for offset in offsets:
            read(length, offset)
        taken = time.perf_counter() - start
        crc = 0
        for offset in offsets:
            crc = zlib.crc32(read(length, offset), crc)
        print(taken, crc, flush=True)
    del keep


main()
