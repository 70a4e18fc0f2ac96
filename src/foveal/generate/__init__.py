"""Generating pictures: flows, samplers and what makes them cheap."""
