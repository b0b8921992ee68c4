"""Batch prediction, `maskserve predict`: masks for many images. `maskserve.cli.predict` imports it when it is called.

config.py      the options of a run, picklable, for this process and for Ray's
inputs.py      finds the images and reads them: folders, globs, archives, object stores
outputs.py     writes masks, each whole or not at all: folders, object stores
manifest.py    one row per image: how a run that was stopped resumes
parquet.py     the manifest's rows as Parquet
backends.py    segments an image: with a bundle in this process, or through a service
image_task.py  one image, from its address to a mask and a manifest row
geotiff.py     the same for rasters that do not fit in memory
runner.py      the whole run, on threads
ray_runner.py  the whole run, on Ray Data
"""
