"""mmembed: one embedding space for images, texts and sounds.

Importing this package loads nothing heavy: neither apache_beam nor librosa nor numpy.
"""

__version__ = "0.1.0"
