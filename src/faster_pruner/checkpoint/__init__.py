"""Checkpoints: open one, save one, and prove that what was saved is what was in memory.

A pruned checkpoint is a Hugging Face folder (config.json, model.safetensors, tokenizer files) whose config carries

* ``faster_pruner``: ``{"format": 2, "sizes": {"layers.0.attention": 7, ...}}``, units by sublayer, which `load` reads;
* ``per_layer_config``: the same sizes in the shape that transformers itself uses for heterogeneous models, so that a
  stock ``from_pretrained`` refuses the folder loudly instead of re-initialising layers;
* ``auto_map``: a generated file that builds the stock class with these sizes (``trust_remote_code=True``, see
  `remote`).

Where the stock class can express the sizes, the last two are absent and plain transformers opens the folder.
Nothing is ever unpickled, and nothing that a config says becomes a path or code.
"""
