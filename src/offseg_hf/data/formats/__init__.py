"""Annotations as other tools write them, turned into the plain layout that `offseg data check` and training read.

`offseg_hf.data.formats.convert` has the command's function, the other modules a reader each. Pillow and numpy do the
reading, no library of annotations does:

- supervision (0.31) reads COCO, YOLO, VOC and LabelMe as detections. It draws polygons with their edges' pixels, so
  that shapes that touch overlap by a pixel; it knows neither panoptic PNGs nor Label Studio, and brings PyAV,
  matplotlib and scipy.
- pycocotools has a rule for polygons of its own (boundaries are sampled five times as fine and rounded): of random
  polygons 0.4 % of the pixels differ, and a shape would not be the same in COCO and in YOLO. Its run lengths are 40
  lines in `masks`, tested with its output.
- label-studio-sdk is a client of a server, of which the decoder of brushes would be used.
"""
