"""How glibc's malloc gives memory back to the system, for processes that are started here.

Blocks of more than 4 MiB are given back when they are freed. With 128 KiB, each small image would get its pages anew, which takes
longer than to decode it; without a setting, glibc raises the threshold to the largest block that was freed.
"""

MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
