"""Evaluation: the performance of the predictions, and the agreement of the maps with a pathologist's outlines.

Numbers have 95 % intervals over patients; what cannot be measured is reported as such. The maps that
``wsi evaluate explanations`` measures are computed in explain, so only that command needs torch.
"""
