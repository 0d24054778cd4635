"""The released layout, small: folders as LLaVA, MGIE, CLIP and Stable Diffusion were published.

The numbers are those of a model directory, read from it and written by transformers, diffusers and torch.
"""

import json

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2 as sentencepiece
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, LlamaForCausalLM

MERGED = "in th er an at en is ra ta ▁a ▁t ▁th ▁in ▁is ▁w".split()


def write_sentencepiece(path, size):
    """A BPE `tokenizer.model` with byte fallback, as LLaMA's: <unk> <s> </s>, the bytes, then pieces."""
    model = sentencepiece.ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(f"<0x{i:02X}>", 6) for i in range(256)]
    letters = size - len(pieces) - len(MERGED)
    pieces += [(piece, 1) for piece in MERGED] + [(letter, 1) for letter in ("▁etaoinshrdlcumfpgwybvk"[:letters])]
    pieces += [(chr(0x100 + i), 1) for i in range(size - len(pieces))]
    for i, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(i), type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = size
    path.write_bytes(model.SerializeToString())


def read(model_dir):
    """{part: state dict} of a model directory, by the libraries whose networks these are; the edit head's by keys."""
    states = {
        part: cls.from_pretrained(model_dir / part).state_dict()
        for cls, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (LlamaForCausalLM, "mllm"))
    }
    projector = {k: v for k, v in load_file(model_dir / "mllm" / "model.safetensors").items() if "mm_projector" in k}
    return states | {
        "mllm": states["mllm"] | projector,
        "edit_head": load_file(model_dir / "edit_head" / "model.safetensors"),
    }


def write_llava(folder, model_dir, state, added=3):
    """LLaVA's own: other rows for the words, none for [IMG0]..[IMG7], two shards and a sentencepiece tokenizer."""
    folder.mkdir()
    rows = len(state["lm_head.weight"]) - 8
    own = dict(state) | {
        key: torch.randn_like(state[key][:rows]) for key in ("model.embed_tokens.weight", "lm_head.weight")
    }
    own["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    keys, index = list(own), {}
    for i, part in enumerate((keys[:5], keys[5:])):
        name = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({key: own[key].clone() for key in part}, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    fields = json.loads((model_dir / "mllm" / "config.json").read_text())
    for name in ("im_patch_id", "mm_projector_type"):
        del fields[name]
    fields |= {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "vocab_size": rows}
    fields |= {"mm_vision_tower": "openai/clip-tiny-patch14-28", "mm_use_im_start_end": True, "use_mm_proj": True}
    (folder / "config.json").write_text(json.dumps(fields))
    write_sentencepiece(folder / "tokenizer.model", rows - 3)
    tokens = ("<im_patch>", "<im_start>", "<im_end>")[:added]
    (folder / "added_tokens.json").write_text(json.dumps({token: rows - 3 + i for i, token in enumerate(tokens)}))
    special = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "<unk>"}))
    special = {name: fields | {"__type": "AddedToken"} for name, fields in special.items()}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special | {"model_max_length": 2048}))


def write_mgie(folder, states):
    """mllm.pt and unet.pt."""
    folder.mkdir()
    head = {key if key == "emb" else f"edit_head.{key}": value for key, value in states["edit_head"].items()}
    mllm = {key: states["mllm"][key] for key in ("model.embed_tokens.weight", "lm_head.weight")}
    torch.save(mllm | head, folder / "mllm.pt")
    torch.save(states["unet"], folder / "unet.pt")


def write_snapshot(folder, states, shards=3):
    """What the trainer leaves: everything but CLIP in numbered shards, without an index."""
    folder.mkdir()
    whole = dict(states["mllm"])
    for part in ("edit_head", "unet", "vae"):
        whole |= {f"{part}.{key}": value for key, value in states[part].items() if key != "emb"}
    keys = list(whole)
    for i in range(shards):
        part = {key: whole[key].clone() for key in keys[i::shards]}
        torch.save(part, folder / f"pytorch_model-{i + 1:05}-of-{shards:05}.bin")


def write_clip(folder, model_dir):
    """A whole CLIP around the vision tower."""
    tower = CLIPVisionModel.from_pretrained(model_dir / "vision_tower")
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=text | {"vocab_size": 9}, vision_config=tower.config.to_dict()))
    state = {key.removeprefix("vision_model."): value for key, value in tower.state_dict().items()}
    clip.vision_model.load_state_dict(state)
    clip.save_pretrained(folder)


def write_diffusion(folder, model_dir):
    """Stable Diffusion with four input channels and PNDM, as v1.5 was published."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(model_dir / "unet"), in_channels=4)
    unet.save_pretrained(folder / "unet")
    AutoencoderKL.from_pretrained(model_dir / "vae").save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")


def write_all(folder, model_dir):
    """llava/, mgie/, clip/ and diffusion/ in `folder`."""
    states = read(model_dir)
    write_llava(folder / "llava", model_dir, states["mllm"])
    write_mgie(folder / "mgie", states)
    write_clip(folder / "clip", model_dir)
    write_diffusion(folder / "diffusion", model_dir)
    return states
