"""Synthetic videos in the layout of AVA-ActiveSpeaker: drawn faces, synthetic voices and their annotations."""
