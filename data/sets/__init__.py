"""The data sets, one module each, with a declaration (`SPEC`) and a function that reads it (`load`).

One example of each kind: `mnist` (read by torchvision), `image_folder` (decoded into memory), `imagenet` (streamed).
"""
