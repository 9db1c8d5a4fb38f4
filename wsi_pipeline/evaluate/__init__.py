"""How good are the predictions, and do the maps find what a pathologist outlined?

Numbers come with 95 % intervals over patients; what cannot be measured is said, not guessed. The maps that
``wsi evaluate explanations`` measures are made in explain: torch is needed there only.
"""
