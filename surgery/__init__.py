"""Name-free model surgery: read what a model is, adapt exactly what a policy asks for, fold it away.

surgery.read(model)                          what the model is, from its torch.export graph
surgery.plan(model, policy)                  what would be done, before anything is touched
surgery.allocate(model, batches, policy, budget="0.3%")  ranks by measured sensitivity: a policy
surgery.apply(model, policy="vit-attn-qv")   in place; only adapters and the policy's extras train
surgery.fold(model)                          the plain model again, weights folded
surgery.undo(model)                          the model as it was, bit for bit
surgery.fold_checkpoint(folder, adapter, new) folded on disk, shard by shard, without the model
surgery.save(model, path), surgery.load(model, path)
surgery.save_pretrained(model, folder), surgery.load_pretrained(model, source), surgery.push_to_hub(model, repo)
surgery.save_picture(path, anatomy, plan)    the anatomy as one HTML page
"""

from __future__ import annotations

import lazy_loader

# The names are in __init__.pyi. They are imported on first use, so that surgery --help needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
