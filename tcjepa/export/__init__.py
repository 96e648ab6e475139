"""Trained encoders as timm, Hugging Face and safetensors folders, checked before they are done."""

from tcjepa.export.plain import load_encoder

__all__ = ["load_encoder"]
