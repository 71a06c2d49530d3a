"""The engine: a model as a chain of locally linear operations, and what is left over of each."""
