"""How good are the predictions, and do the maps find what a pathologist outlined?

Numbers come with 95 % intervals over patients; what cannot be measured is said, not guessed. Torch-free but for what explain
measures for ``wsi evaluate explanations``.
"""
