"""The only place that touches comfy, folder_paths and the server.

Reading order: :mod:`.autograd` (gradients through native blocks), :mod:`.adapter` (LoRA as forward
hooks), :mod:`.session` (borrow a MODEL and give it back unchanged), :mod:`.conditioning` and
:mod:`.policy` (all that as the core's ``Policy``), :mod:`.tiny` (the embedded model as MODEL, CLIP
and VAE), :mod:`.host` (progress, interrupt, events, folders) and :mod:`.memory` (what fits); on
these stand :mod:`.prompts` (files of the input folder), :mod:`.text_encoder` and :mod:`.encoding`
(encode once, keep on disk), :mod:`.sampler`, :mod:`.rollouts` and :mod:`.training`, which the nodes
call.
"""
