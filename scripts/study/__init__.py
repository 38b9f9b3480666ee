"""The paired study of offset learning from pretrained weights; `scripts/offset_study.py` is its command."""
