"""What fine-tuning on one's own videos should need: hours, disk, money. Nothing is run for it.

In reading order:

    scope        which variants can be estimated
    material     the videos and questions that there are, measured or given
    installed    the GPUs of this machine
    machine      the card, and what a run has to do to fit into it
    arithmetic   hours and bytes, over the rates of training/rates.py
    needs        all of a variant, step by step
    command      `hourllava estimate`
"""
