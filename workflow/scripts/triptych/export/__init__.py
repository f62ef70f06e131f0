"""Checkpoints as folders that plain transformers loads, with a processor and a model card.

There are two layouts. With a CLIP or SigLIP encoder the folder is a standard `LlavaForConditionalGeneration`. The
packaged encoder and the connector that pools have no class in transformers; then language model, connector and encoder
are written side by side, and `load` joins them. In both, the LoRA is merged, or written as a peft adapter.
"""

from triptych.export.parts import load as load
