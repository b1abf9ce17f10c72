"""How large pictures may be, in pixels (width x height). Larger ones are refused before they are
decoded. Nothing is imported here: settings and light processes use it, too.
"""

# Of a video, wherever one is opened: acquired, decoded, asked about. The setting
# `features.limits.max_pixels` changes it for acquisition and features together.
MAX_VIDEO_PIXELS = 4096 * 2304
# Of an image: where Pillow begins to suspect a decompression bomb.
MAX_IMAGE_PIXELS = 89_478_485
