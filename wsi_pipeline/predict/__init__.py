"""Prediction: an ensemble's word on every slide, from the members that have not seen its patient."""
