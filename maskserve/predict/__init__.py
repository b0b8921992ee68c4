"""Batch prediction, `maskserve predict`: masks for many images. `maskserve.cli.predict` imports it when it is called.

config.py      the options of a run, picklable, for this process and for Ray's
inputs.py      finds the images and reads them: folders, globs, archives, object stores
dataset_folder.py  of a data set its images, not its masks
unread.py      what the sources contain and a run does not read
outputs.py     writes masks, each whole or not at all: folders, object stores
manifest.py    one row per image: how a run that was stopped resumes
parquet.py     the manifest's rows as Parquet
backends.py    segments an image: with a bundle in this process, or through a service
service_responses.py  checks and reads what a service answers
image_task.py  one image, from its address to a mask and a manifest row
geo_polygons.py  polygons of a GeoTIFF in the coordinates of its CRS
geotiff.py     the same for rasters that do not fit in memory
runner.py      the whole run, on threads
ray_runner.py  the whole run, on Ray Data
"""
