"""What each step is told."""

from typing import Literal

# Which questions are asked, and with which image: a fold's held-out questions with their own image, with another
# one, or with a blank one; the source's own test part; or captions, of the validation part of a stage's own data.
View = Literal["held-out", "swapped", "blank", "test", "captions"]
