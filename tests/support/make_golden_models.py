"""Makes the F32 models of tests/golden/models again: seeded random weights, real trained byte-level
BPE tokenizers. The same numpy gives the same bytes, which are checked.

  make_golden_models.py RECIPES OUT_DIR [NAME ...]

RECIPES is tests/golden/models/recipes.json: the merges of each tokenizer, and for each model, in
order of token frequency, [token, its frequent successors ...], counted over Debian's plain-text
licences. The weights give bigram-like logits: a handful of candidates per token, decided by context.
"""
import hashlib
import json
import os
import struct
import sys

import numpy as np

# GGUF v3 writer
U32, I32, F32, BOOL, STR, ARR = 4, 5, 6, 7, 8, 9


def _s(b):
    b = b.encode("utf-8") if isinstance(b, str) else b
    return struct.pack("<Q", len(b)) + b


def _val(t, v):
    if t == U32: return struct.pack("<I", v)
    if t == I32: return struct.pack("<i", v)
    if t == F32: return struct.pack("<f", v)
    if t == BOOL: return struct.pack("<B", 1 if v else 0)
    if t == STR: return _s(v)
    raise ValueError(t)


class Kv:
    def __init__(self): self.items = []
    def u32(self, k, v): self.items.append((k, U32, None, int(v)))
    def f32(self, k, v): self.items.append((k, F32, None, float(v)))
    def bool(self, k, v): self.items.append((k, BOOL, None, bool(v)))
    def str(self, k, v): self.items.append((k, STR, None, v))
    def arr(self, k, t, v): self.items.append((k, ARR, t, list(v)))

    def blob(self):
        o = b""
        for k, t, et, v in self.items:
            o += _s(k) + struct.pack("<I", t)
            if t == ARR:
                o += struct.pack("<IQ", et, len(v)) + b"".join(_val(et, x) for x in v)
            else:
                o += _val(t, v)
        return o


def write_gguf(path, kv, tensors, align=32):
    """tensors: list of (name, float32 array)"""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kv.items)) + kv.blob()
    off = 0
    for name, a in tensors:
        head += _s(name) + struct.pack("<I", a.ndim) + b"".join(struct.pack("<Q", n) for n in a.shape[::-1])
        head += struct.pack("<IQ", 0, off)
        off += (a.nbytes + align - 1) // align * align
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % align))
        for _, a in tensors:
            f.write(a.astype("<f4").tobytes() + b"\0" * (-a.nbytes % align))


# byte-level BPE
def byte_map():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    m, n = {}, 0
    for b in range(256):
        if b in keep:
            m[b] = chr(b)
        else:
            m[b] = chr(256 + n)
            n += 1
    return m


BM = byte_map()
BYTE_ORDER = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_ORDER += [b for b in range(256) if b not in BYTE_ORDER]

# (text, type) in vocabulary order after the merges; 3 = CONTROL, 4 = USER_DEFINED
SPECIALS = {
    "glm": [("<|endoftext|>", 3), ("[MASK]", 3), ("[gMASK]", 3), ("[sMASK]", 3), ("<sop>", 3), ("<eop>", 3),
            ("<|system|>", 3), ("<|user|>", 3), ("<|assistant|>", 3), ("<|observation|>", 3),
            ("<|begin_of_image|>", 3), ("<|end_of_image|>", 3), ("/nothink", 3),
            ("<think>", 4), ("</think>", 4), ("<tool_call>", 4), ("</tool_call>", 4),
            ("<tool_response>", 4), ("</tool_response>", 4),
            ("<arg_key>", 4), ("</arg_key>", 4), ("<arg_value>", 4), ("</arg_value>", 4)],
    "qwen": [("<|endoftext|>", 3), ("<|im_start|>", 3), ("<|im_end|>", 3), ("<|object_ref_start|>", 3),
             ("<|object_ref_end|>", 3), ("<|vision_start|>", 3), ("<|vision_end|>", 3), ("<|image_pad|>", 3),
             ("<tool_call>", 4), ("</tool_call>", 4), ("<|fim_prefix|>", 4), ("<|fim_middle|>", 4),
             ("<|fim_suffix|>", 4), ("<tool_response>", 4), ("</tool_response>", 4), ("<think>", 4), ("</think>", 4)],
    "deepseek": [("<｜begin▁of▁sentence｜>", 3), ("<｜end▁of▁sentence｜>", 3), ("<｜▁pad▁｜>", 3),
                 ("<｜User｜>", 3), ("<｜Assistant｜>", 3), ("<｜fim▁hole｜>", 4), ("<｜tool▁calls▁begin｜>", 4),
                 ("<｜tool▁calls▁end｜>", 4), ("<think>", 4), ("</think>", 4)],
}

TEMPLATES = {
    "glm": (
        "[gMASK]<sop>"
        "{%- if tools %}<|system|>\nTools:\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif -%}"
        "{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}<|user|>\n{{ m.content }}"
        "{%- elif m.role == 'assistant' -%}<|assistant|>\n"
        "{%- if m.reasoning_content is defined and m.reasoning_content -%}<think>{{ m.reasoning_content | trim }}</think>"
        "{%- else -%}<think></think>{%- endif -%}"
        "{{ '\n' + (m.content | trim) if m.content else '' }}"
        "{%- for c in (m.tool_calls or []) %}\n<tool_call>{{ c.name }}{% for k, v in c.arguments.items() %}"
        "<arg_key>{{ k }}</arg_key><arg_value>{{ v if v is string else v | tojson }}</arg_value>{% endfor %}</tool_call>{% endfor -%}"
        "{%- elif m.role == 'tool' -%}<|observation|>\n<tool_response>{{ m.content }}</tool_response>"
        "{%- elif m.role == 'system' -%}<|system|>\n{{ m.content }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>\n"
        "{{- '<think></think>\n' if (enable_thinking is defined and not enable_thinking) else '<think>' -}}{%- endif -%}"),
    "qwen": (
        "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif -%}"
        "{%- for m in messages -%}"
        "{%- if not (loop.first and m.role == 'system' and tools) -%}"
        "{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
        "{%- if m.role == 'assistant' and m.reasoning_content is defined %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif -%}"
        "{%- if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}{{ m.content }}{% endif -%}"
        "{%- for c in (m.tool_calls or []) %}\n<tool_call>\n{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}\n</tool_call>{% endfor -%}"
        "{{ '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif -%}{%- endif -%}"),
    "deepseek": (
        "{{ bos_token }}{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{{ m.content }}"
        "{%- elif m.role == 'user' -%}{{ '<｜User｜>' + m.content }}"
        "{%- elif m.role == 'assistant' -%}{{ '<｜Assistant｜></think>' + m.content + '<｜end▁of▁sentence｜>' }}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<｜Assistant｜><think>{%- endif -%}"),
}


class Tok:
    def __init__(self, family, pre, merges):
        sp = SPECIALS[family]
        n_unused = 5  # a few trailing UNUSED entries, as padded vocabularies have
        self.family, self.pre = family, pre
        self.tokens = [BM[b] for b in BYTE_ORDER] + [m.replace(" ", "") for m in merges]
        assert len(set(self.tokens)) == len(self.tokens)
        self.types = [1] * len(self.tokens)
        for s, t in sp:
            self.tokens.append(s); self.types.append(t)
        for i in range(n_unused):
            self.tokens.append("[PAD%d]" % len(self.tokens)); self.types.append(5)
        self.merges = merges
        self.id = {t: i for i, t in enumerate(self.tokens)}

    def kv(self, kv):
        kv.str("tokenizer.ggml.model", "gpt2")
        kv.str("tokenizer.ggml.pre", self.pre)
        kv.arr("tokenizer.ggml.tokens", STR, self.tokens)
        kv.arr("tokenizer.ggml.token_type", I32, self.types)
        kv.arr("tokenizer.ggml.merges", STR, self.merges)
        i = self.id
        if self.family == "glm":
            kv.u32("tokenizer.ggml.eos_token_id", i["<|endoftext|>"])
            kv.u32("tokenizer.ggml.padding_token_id", i["<|endoftext|>"])
            kv.u32("tokenizer.ggml.unknown_token_id", i["<|endoftext|>"])
            kv.u32("tokenizer.ggml.bos_token_id", i["[gMASK]"])
            kv.u32("tokenizer.ggml.eot_token_id", i["<|user|>"])
            kv.u32("tokenizer.ggml.eom_token_id", i["<|observation|>"])
            kv.bool("tokenizer.ggml.add_bos_token", False)
        elif self.family == "qwen":
            kv.u32("tokenizer.ggml.eos_token_id", i["<|im_end|>"])
            kv.u32("tokenizer.ggml.padding_token_id", i["<|endoftext|>"])
            kv.u32("tokenizer.ggml.bos_token_id", i["<|endoftext|>"])
            kv.bool("tokenizer.ggml.add_bos_token", False)
        else:
            kv.u32("tokenizer.ggml.bos_token_id", i["<｜begin▁of▁sentence｜>"])
            kv.u32("tokenizer.ggml.eos_token_id", i["<｜end▁of▁sentence｜>"])
            kv.u32("tokenizer.ggml.padding_token_id", i["<｜▁pad▁｜>"])
            kv.bool("tokenizer.ggml.add_bos_token", True)
            kv.bool("tokenizer.ggml.add_eos_token", False)
        kv.str("tokenizer.chat_template", TEMPLATES[self.family])


# weights
def mm(a, b):
    """matrix product without BLAS and in float64, so that the bytes do not depend on threads"""
    return np.einsum("ij,jk->ik", a.astype(np.float64), b.astype(np.float64), optimize=False)


class Build:
    def __init__(self, name, arch, tok, successors, d, seed):
        self.name, self.arch, self.tok, self.successors, self.d = name, arch, tok, successors, d
        self.rng = np.random.default_rng(seed)
        self.kv = Kv()
        self.t = []  # (tensor name, float32 array in numpy order)
        kv = self.kv
        kv.str("general.architecture", arch)
        kv.str("general.type", "model")
        kv.str("general.name", name)
        kv.u32("general.quantization_version", 2)
        kv.u32("general.file_type", d.get("ftype", 0))
        p = arch + "."
        kv.u32(p + "vocab_size", len(tok.tokens))
        kv.u32(p + "context_length", d["ctx_train"])
        kv.u32(p + "embedding_length", d["E"])
        kv.u32(p + "block_count", d["L"] + d.get("nextn", 0))
        kv.u32(p + "attention.head_count", d["H"])
        kv.f32(p + "attention.layer_norm_rms_epsilon", d.get("eps", 1e-5))
        kv.f32(p + "rope.freq_base", d["theta"])
        kv.u32(p + "rope.dimension_count", d["rope"])
        if d.get("nextn"):
            kv.u32(p + "nextn_predict_layers", d["nextn"])

    def add(self, name, a):
        self.t.append((name, np.ascontiguousarray(a, dtype=np.float32)))

    def n(self, *shape, std=1.0):
        return (self.rng.standard_normal(shape) * std).astype(np.float32)

    def norm(self, name, n, around=1.0, var=0.15):
        self.add(name, around * (1.0 + var * self.rng.standard_normal(n)))

    def w(self, name, *shape, std=1.0):
        """std is relative to 1/sqrt(fan in); the last axis is the input axis"""
        self.add(name, self.n(*shape, std=std / np.sqrt(shape[-1])))

    def bigram_head(self, emb):
        """output rows: noise + a pull towards each token's frequent successors"""
        d, tok = self.d, self.tok
        V, E = emb.shape
        K, cap, beta, s = d["bg_k"], 6, d["bg_beta"], d["bg_noise"]
        ok = np.array([t in (1, 3, 4) for t in tok.types])
        indeg = np.zeros(V, int)
        succ = np.full((V, K), -1)
        for i, *counted in self.successors:
            for k, j in enumerate(counted):
                succ[i, k] = j; indeg[j] += 1
            k = len(counted)
            while k < K:
                j = int(self.rng.integers(V))
                if ok[j] and j != i and indeg[j] < cap + 2 and j not in succ[i]:
                    succ[i, k] = j; indeg[j] += 1; k += 1
        e = emb / np.linalg.norm(emb, axis=1, keepdims=True)
        out = self.n(V, E, std=s / np.sqrt(E))
        for k in range(K):
            np.add.at(out, succ[:, k], np.float32(beta / np.sqrt(E)) * e)  # NumPy 2 would widen e
        return out

    def embeddings(self):
        V, E = len(self.tok.tokens), self.d["E"]
        emb = self.n(V, E)
        # models with an indexer: a direction common to all tokens, which lets
        # the (bias-free) indexer head weights be mostly positive
        self.u = self.n(E, std=0.4) if "idx_heads" in self.d else np.zeros(E, np.float32)
        self.add("token_embd.weight", emb + self.u)
        self.norm("output_norm.weight", E)
        self.emb = emb + self.u
        self.add("output.weight", self.bigram_head(emb))

    # --- pieces shared by several architectures
    def mla(self, p, full_indexer=None):
        d = self.d
        E, H, ql, kl, nope, rope, v = (d[k] for k in ("E", "H", "q_lora", "kv_lora", "nope", "rope", "v"))
        self.norm(p + "attn_norm.weight", E)
        self.w(p + "attn_q_a.weight", ql, E)
        self.norm(p + "attn_q_a_norm.weight", ql)
        self.w(p + "attn_q_b.weight", H * (nope + rope), ql, std=d.get("q_std", 1.5))
        self.w(p + "attn_kv_a_mqa.weight", kl + rope, E, std=1.2)
        self.norm(p + "attn_kv_a_norm.weight", kl)
        self.w(p + "attn_k_b.weight", H, kl, nope)      # scaled below: fan in is kl for the keys
        self.t[-1] = (self.t[-1][0], self.t[-1][1] * np.float32(1.2 * np.sqrt(nope / kl)))
        self.w(p + "attn_v_b.weight", H, v, kl)
        self.w(p + "attn_output.weight", E, H * v, std=d["a_out"])
        if full_indexer is not None and full_indexer:
            # the indexer imitates the attention it prunes, so that keys near the
            # top-k border carry little attention weight: index head h looks at
            # attention head h % H, through the shared rope key and a random
            # projection R of the compressed key.  Layout [rope | nope].  The second
            # half of the heads are the negated first half with smaller, negative
            # weights: scores then never tie at exactly zero behind the ReLU.
            nh, hs = d["idx_heads"], d["idx_dim"]
            w = dict(self.t[-8:])
            qb, kva, kb = w[p + "attn_q_b.weight"], w[p + "attn_kv_a_mqa.weight"], w[p + "attn_k_b.weight"]
            R = self.n(hs - rope, kl, std=1 / np.sqrt(kl))
            kn = w[p + "attn_kv_a_norm.weight"].astype(np.float32)
            self.norm(p + "indexer.k_norm.weight", hs)
            self.add(p + "indexer.k_norm.bias", self.n(hs, std=0.1))
            sign = np.where(np.arange(nh) < nh // 2, 1.0, -0.4).astype(np.float32)[:, None]
            self.add(p + "indexer.proj.weight", 1.5 * sign * self.u / float(np.square(self.u, dtype=np.float64).sum()) + self.n(nh, E, std=0.15 / np.sqrt(E)))
            ik = np.concatenate([kva[kl:], 1.2 * mm(R, kn[:, None] * kva[:kl])])
            self.add(p + "indexer.attn_k.weight", ik + self.n(hs, E, std=0.15 / np.sqrt(E)))
            q = []
            for h in range(nh):
                if h >= nh // 2:
                    q.append(-q[h - nh // 2])
                    continue
                a = qb[(h % H) * (nope + rope):][:nope + rope]
                qh = np.concatenate([a[nope:], mm(mm(R, kb[h % H]), a[:nope]) * (kl / (hs - rope)) ** 0.5])
                q.append(qh + self.n(*qh.shape, std=0.3 / np.sqrt(ql)))
            self.add(p + "indexer.attn_q_b.weight", np.concatenate(q))

    def dense_ffn(self, p, ff):
        E = self.d["E"]
        self.w(p + "ffn_gate.weight", ff, E, std=1.2)
        self.w(p + "ffn_up.weight", ff, E)
        self.w(p + "ffn_down.weight", E, ff, std=self.d["f_out"] * 1.5)

    def experts(self, p, bias, fused=False, shared=1.0):
        d = self.d
        E, X, ff = d["E"], d["X"], d["ff_exp"]
        self.w(p + "ffn_gate_inp.weight", X, E, std=d.get("router", 1.6))
        if bias:
            self.add(p + "exp_probs_b.bias", self.n(X, std=0.12))
        g, u = self.n(X, ff, E, std=1.2 / np.sqrt(E)), self.n(X, ff, E, std=1 / np.sqrt(E))
        if fused:
            self.add(p + "ffn_gate_up_exps.weight", np.concatenate([g, u], axis=1))
        else:
            self.add(p + "ffn_gate_exps.weight", g)
            self.add(p + "ffn_up_exps.weight", u)
        self.w(p + "ffn_down_exps.weight", X, E, ff, std=d["f_out"] * 1.5 / max(d.get("w_scale", 1.0) * 0.65, 0.65))
        if shared:
            fs = d.get("ff_sh", ff)
            self.w(p + "ffn_gate_shexp.weight", fs, E, std=1.2)
            self.w(p + "ffn_up_shexp.weight", fs, E)
            self.w(p + "ffn_down_shexp.weight", E, fs, std=d["f_out"] * 1.2 * shared)

    def nextn(self, p, own_embed=False, own_head=False):
        E = self.d["E"]
        eh = np.concatenate([0.9 * np.eye(E, dtype=np.float32) + self.n(E, E, std=0.15 / np.sqrt(E)),
                             self.n(E, E, std=0.45 / np.sqrt(E))], axis=1)
        self.add(p + "nextn.eh_proj.weight", eh)
        self.norm(p + "nextn.enorm.weight", E)
        self.norm(p + "nextn.hnorm.weight", E)
        self.norm(p + "nextn.shared_head_norm.weight", E)
        if own_embed:
            self.add(p + "nextn.embed_tokens.weight", self.emb + self.n(*self.emb.shape, std=0.1))
        if own_head:
            o = dict(self.t)["output.weight"]
            self.add(p + "nextn.shared_head_head.weight", o + self.n(*o.shape, std=0.1 * float(o.std())))

    def moe_kv(self, gating=None, norm=None):
        d, p, kv = self.d, self.arch + ".", self.kv
        kv.u32(p + "expert_count", d["X"])
        kv.u32(p + "expert_used_count", d["used"])
        kv.u32(p + "expert_feed_forward_length", d["ff_exp"])
        if "w_scale" in d: kv.f32(p + "expert_weights_scale", d["w_scale"])
        if norm is not None: kv.bool(p + "expert_weights_norm", norm)
        if gating is not None: kv.u32(p + "expert_gating_func", gating)

    def mla_kv(self):
        d, p, kv = self.d, self.arch + ".", self.kv
        kv.u32(p + "feed_forward_length", d["ff"])
        kv.u32(p + "leading_dense_block_count", d["dense"])
        kv.u32(p + "expert_shared_count", 1)
        kv.u32(p + "attention.head_count_kv", 1)
        kv.u32(p + "attention.q_lora_rank", d["q_lora"])
        kv.u32(p + "attention.kv_lora_rank", d["kv_lora"])
        kv.u32(p + "attention.key_length", d["kv_lora"] + d["rope"])
        kv.u32(p + "attention.value_length", d["kv_lora"])
        kv.u32(p + "attention.key_length_mla", d["nope"] + d["rope"])
        kv.u32(p + "attention.value_length_mla", d["v"])
        if "idx_heads" in d:
            kv.u32(p + "attention.indexer.head_count", d["idx_heads"])
            kv.u32(p + "attention.indexer.key_length", d["idx_dim"])
            kv.u32(p + "attention.indexer.top_k", d["top_k"])
        if "yarn" in d:
            y = d["yarn"]
            kv.str(p + "rope.scaling.type", "yarn")
            kv.f32(p + "rope.scaling.factor", y["factor"])
            kv.u32(p + "rope.scaling.original_context_length", y["orig"])
            kv.f32(p + "rope.scaling.yarn_log_multiplier", y["log_mul"])


def glm_dsa(b):
    d, kv = b.d, b.kv
    b.mla_kv(); b.moe_kv(gating=2, norm=True)
    if "types" in d:
        kv.arr("glm-dsa.attention.indexer.types", BOOL, d["types"])
    b.embeddings()
    types = d.get("types", [1] * d["L"])
    for i in range(d["L"] + d.get("nextn", 0)):
        p = "blk.%d." % i
        b.mla(p, full_indexer=(types[i] if i < d["L"] else 1))
        b.norm(p + "ffn_norm.weight", d["E"])
        if i < d["dense"]: b.dense_ffn(p, d["ff"])
        else: b.experts(p, bias=True)
        if i >= d["L"]: b.nextn(p, d.get("mtp_embed"), d.get("mtp_head"))


def deepseek(b):
    d, kv, a = b.d, b.kv, b.arch
    b.mla_kv(); b.moe_kv(gating=2, norm=True)
    if d.get("groups"):
        kv.u32(a + ".expert_group_count", d["groups"])
        kv.u32(a + ".expert_group_used_count", d["groups_used"])
    b.embeddings()
    for i in range(d["L"]):
        p = "blk.%d." % i
        b.mla(p, full_indexer=("idx_heads" in d))
        b.norm(p + "ffn_norm.weight", d["E"])
        if i < d["dense"]: b.dense_ffn(p, d["ff"])
        else: b.experts(p, bias=True)


def gqa(b, p, gated=False, bias=False, qk_norm=True):
    d = b.d
    E, H, KV, hd = d["E"], d["H"], d["KV"], d["hd"]
    b.w(p + "attn_q.weight", H * hd * (2 if gated else 1), E, std=1.2)
    b.w(p + "attn_k.weight", KV * hd, E, std=1.2)
    b.w(p + "attn_v.weight", KV * hd, E)
    if bias:
        for x, n in (("q", H * hd), ("k", KV * hd), ("v", KV * hd)):
            b.add(p + "attn_%s.bias" % x, b.n(n, std=0.2))
    if qk_norm:
        b.norm(p + "attn_q_norm.weight", hd, around=1.4)
        b.norm(p + "attn_k_norm.weight", hd, around=1.4)
    b.w(p + "attn_output.weight", E, H * hd, std=d["a_out"] * (4 if gated else 1))


def gqa_kv(b):
    d, kv, p = b.d, b.kv, b.arch + "."
    kv.u32(p + "attention.head_count_kv", d["KV"])
    kv.u32(p + "attention.key_length", d["hd"])
    kv.u32(p + "attention.value_length", d["hd"])


def qwen35moe(b):
    d, kv = b.d, b.kv
    E = d["E"]
    gqa_kv(b); b.moe_kv()
    p = "qwen35moe."
    kv.u32(p + "expert_shared_feed_forward_length", d["ff_sh"])
    kv.u32(p + "full_attention_interval", 4)
    kv.arr(p + "rope.dimension_sections", I32, d["sections"])
    ds, nk, nv, ck = d["state"], d["nk"], d["nv"], 4
    kv.u32(p + "ssm.conv_kernel", ck)
    kv.u32(p + "ssm.state_size", ds)
    kv.u32(p + "ssm.group_count", nk)
    kv.u32(p + "ssm.time_step_rank", nv)
    kv.u32(p + "ssm.inner_size", ds * nv)
    b.embeddings()
    for i in range(d["L"] + d.get("nextn", 0)):
        p = "blk.%d." % i
        b.norm(p + "attn_norm.weight", E)
        b.norm(p + "post_attention_norm.weight", E)
        if i >= d["L"] or (i + 1) % 4 == 0:
            gqa(b, p, gated=True)
        else:
            conv = 2 * ds * nk + ds * nv
            b.w(p + "attn_qkv.weight", conv, E)
            b.w(p + "attn_gate.weight", ds * nv, E, std=1.2)
            c = b.n(conv, ck, std=0.35)
            c[:, -1] += 0.8
            b.add(p + "ssm_conv1d.weight", c)
            b.add(p + "ssm_dt.bias", b.n(nv, std=0.7) - 1.0)
            b.add(p + "ssm_a", -np.exp(b.rng.uniform(np.log(0.03), np.log(1.5), nv)))
            b.w(p + "ssm_beta.weight", nv, E)
            b.w(p + "ssm_alpha.weight", nv, E)
            b.norm(p + "ssm_norm.weight", ds)
            b.w(p + "ssm_out.weight", E, ds * nv, std=d["a_out"] * 1.5)
        b.experts(p, bias=False, fused=(i in d.get("fused", ())), shared=1.5)
        b.add(p + "ffn_gate_inp_shexp.weight", b.n(E, std=1.0 / np.sqrt(E)))
        if i >= d["L"]: b.nextn(p, d.get("mtp_embed"), d.get("mtp_head"))


def qwen3moe(b):
    d = b.d
    gqa_kv(b); b.moe_kv()
    b.kv.u32("qwen3moe.feed_forward_length", d["ff_exp"] * 4)
    b.embeddings()
    for i in range(d["L"]):
        p = "blk.%d." % i
        b.norm(p + "attn_norm.weight", d["E"])
        gqa(b, p)
        b.norm(p + "ffn_norm.weight", d["E"])
        b.experts(p, bias=False, shared=0)


def glm4moe(b):
    d, kv = b.d, b.kv
    gqa_kv(b); b.moe_kv(gating=2, norm=True)
    kv.u32("glm4moe.feed_forward_length", d["ff"])
    kv.u32("glm4moe.leading_dense_block_count", d["dense"])
    kv.u32("glm4moe.expert_shared_count", 1)
    b.embeddings()
    for i in range(d["L"] + d.get("nextn", 0)):
        p = "blk.%d." % i
        b.norm(p + "attn_norm.weight", d["E"])
        gqa(b, p, bias=True)
        b.norm(p + "post_attention_norm.weight", d["E"])
        if i < d["dense"]: b.dense_ffn(p, d["ff"])
        else: b.experts(p, bias=True)
        if i >= d["L"]: b.nextn(p)


ARCH = {"glm-dsa": glm_dsa, "deepseek2": deepseek, "deepseek32": deepseek, "qwen35moe": qwen35moe,
        "qwen3moe": qwen3moe, "glm4moe": glm4moe}

SMALL = dict(bg_beta=26.0, bg_noise=2.0, bg_k=3, a_out=0.45, f_out=0.32)
SMALL96 = dict(SMALL, bg_k=2, bg_beta=28.0)
GLM_S = dict(SMALL, E=128, L=7, nextn=1, H=4, q_lora=48, kv_lora=64, nope=24, rope=32, v=40, ff=192, dense=2, X=8,
             used=2, ff_exp=20, w_scale=2.5, idx_heads=8, idx_dim=64, top_k=16, theta=1e6, ctx_train=1048576,
             types=[1, 1, 0, 0, 1, 0, 0])
QW_S = dict(SMALL, E=112, L=8, nextn=1, H=4, KV=2, hd=64, rope=16, sections=[3, 3, 2, 0], state=32, nk=2, nv=4, X=8,
            used=2, ff_exp=16, ff_sh=32, theta=1e7, ctx_train=262144, eps=1e-6)

G, Q, Q2, D = ("glm", "glm4"), ("qwen", "qwen35"), ("qwen", "qwen2"), ("deepseek", "deepseek-v3")
MODELS = [
    # name, arch, (tokenizer family, pre), vocab, seed, dims
    ("glm52-f32", "glm-dsa", G, 768, 101, GLM_S),

    ("glm5-f32", "glm-dsa", G, 704, 104,
     {k: v for k, v in dict(GLM_S, E=96, bg_k=2, bg_beta=28.0, L=5, dense=3, X=12, used=4, ff_exp=16, idx_heads=6, ctx_train=202752, H=3, v=48).items() if k != "types"}),
    ("qwen35moe-f32", "qwen35moe", Q, 768, 201, QW_S),

    ("deepseek2-f32", "deepseek2", D, 704, 301,
     dict(SMALL96, E=96, L=4, H=4, q_lora=64, kv_lora=64, nope=40, rope=32, v=24, ff=192, dense=1, X=16, used=4, groups=4, groups_used=2,
          ff_exp=16, w_scale=2.5, theta=1e4, ctx_train=16384, yarn=dict(factor=8.0, orig=128, log_mul=0.1), eps=1e-6)),
    ("qwen3moe-f32", "qwen3moe", Q2, 704, 401,
     dict(SMALL96, E=96, L=4, H=4, KV=2, hd=64, rope=64, X=8, used=3, ff_exp=24, theta=1e6, ctx_train=40960, eps=1e-6)),
    ("glm4moe-f32", "glm4moe", G, 704, 501,
     dict(SMALL96, E=96, L=4, nextn=1, H=4, KV=2, hd=64, rope=32, ff=192, dense=1, X=8, used=2, ff_exp=24, w_scale=1.0, theta=1e6, ctx_train=131072)),
    ("deepseek32-f32", "deepseek32", D, 704, 601,
     dict(SMALL96, E=96, L=4, H=4, q_lora=48, kv_lora=64, nope=24, rope=32, v=40, ff=192, dense=1, X=16, used=4, groups=4, groups_used=2,
          ff_exp=16, w_scale=2.5, idx_heads=8, idx_dim=64, top_k=16, theta=1e4, ctx_train=16384,
          yarn=dict(factor=8.0, orig=128, log_mul=0.1), eps=1e-6)),
]


def main():
    recipes = json.load(open(sys.argv[1]))
    out, only = sys.argv[2], sys.argv[3:]
    os.makedirs(out, exist_ok=True)
    for name, arch, (family, pre), vocab, seed, dims in MODELS:
        if only and name not in only:
            continue
        tok = Tok(family, pre, recipes["tokenizers"]["%s-%d" % (pre, vocab)])
        b = Build(name, arch, tok, recipes["successors"][name], dims, seed)
        ARCH[arch](b)
        tok.kv(b.kv)
        path = os.path.join(out, name + ".gguf")
        write_gguf(path, b.kv, b.t)
        digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
        if digest != recipes["sha256"][name]:
            sys.exit("%s: sha256 %s, wanted %s: this numpy (%s) draws other numbers" %
                     (path, digest, recipes["sha256"][name], np.__version__))


if __name__ == "__main__":
    main()
