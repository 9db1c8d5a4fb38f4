"""What ``import wsi_pipeline as wsi`` offers: one slide step by step, trained models, maps that can be drawn.

``slide_steps``: from a slide file to features. ``trained_model``: predictions and explanations of a bag. ``maps``: maps
that draw themselves over the slide. ``slide_results``: one slide of a run folder. Each function computes what the stage
of the same purpose computes, to the bit.
"""
