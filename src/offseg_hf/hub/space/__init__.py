"""The files of a Space: `app.py` runs there, with no more of this package than the model's repository holds."""
