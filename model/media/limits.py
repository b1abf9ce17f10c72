"""How large pictures may be, in pixels (width x height). Larger ones are refused before they are
decoded. Nothing is imported here: settings and light processes use it, too.
"""

# Of a video that is decoded, in training and in answering; the default of the features step.
MAX_VIDEO_PIXELS = 4096 * 2304
# Of a video that is acquired: it is looked at there, not decoded as a whole.
MAX_ACQUIRED_PIXELS = 8192 * 4320
# Of an image: where Pillow begins to suspect a decompression bomb.
MAX_IMAGE_PIXELS = 89_478_485
