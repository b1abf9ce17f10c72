"""Which reading of a video file this is: part of the identity of everything made from its pictures.

Two readings may choose other frames or give other colours for the same file. Features of both must
not be mixed unnoticed, so every feature file says which reading it is of.
"""

# Raise it with every change of the timeline's rules, of the choice of frames or of the way from a
# decoded frame to pixels, whoever makes it: all features are then made again.
RULES = 2


def reading() -> str:
    """The rules, and the major version of the library that turns frames into RGB: releases of it
    differ in what they give. Decoders do not: their standards state every bit.
    """
    import av  # late: most who ask for a feature file's identity decode nothing

    major = av.library_versions["libswscale"][0]
    return f"rules {RULES}, swscale {major}"
