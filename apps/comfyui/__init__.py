"""v2v's nodes for ComfyUI. ComfyUI imports this folder; v2v itself never does."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
