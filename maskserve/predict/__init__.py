"""`maskserve predict`: masks for many images. As in `cli.py`, its rooms open when it is called.

job.py        what is asked, and what must not change while it is done
sources.py    which images there are, and their bytes: folders, globs, archives, object stores
targets.py    where masks go, each whole or not at all
manifest.py   a row an image: what is done, so that a run that was killed goes on
work.py       from an image's bytes to its mask and its row, by a bundle or a service
rasters.py    the same for scenes that do not fit in memory
pipeline.py   the run: all of this together, on threads
actors.py     the same run on Ray Data
"""
