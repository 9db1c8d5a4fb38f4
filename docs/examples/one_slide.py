"""Explain one slide: python one_slide.py SLIDE MODEL OUT.png, where MODEL is e.g. demo/run/train/abmil."""

import sys

import matplotlib.pyplot as plt

import wsi_pipeline as wsi

slide_path, model_path, picture = sys.argv[1:]
model = wsi.load_model(model_path)
with wsi.open_slide(slide_path) as slide:
    tissue = wsi.find_tissue(slide)
    grid = wsi.make_grid(slide, tissue, mpp=model.card.target_mpp, side_px=model.card.side_px)
    bag = wsi.embed_patches(slide, grid, encoder=model.card.encoder)
    explanation = wsi.explain_bag(model, bag, "contribution")
    explanation.plot(over=slide)
print(wsi.predict_bag(model, bag), explanation)
plt.savefig(picture)
