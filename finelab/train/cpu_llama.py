"""One training step of LoRA on a Llama, forward and backward by hand, for machines without a GPU.

PyTorch's autograd computes what a fine-tune never uses: padding, the vocabulary's scores where there is no
label, and every operation on its own pass through memory. Here nothing is computed that is not needed:

- the documents of a batch lie one after another, without padding, and what they begin with in common, such as
  a system prompt, is there once (documents.py);
- a frozen weight and its adapter are one matrix product: [x, xA'] [W, sB]', and back [dy, dy sB] [W; A];
- queries, keys and values are one product, gate and up another;
- attention goes by blocks of at most BLOCK queries, so that what lies in the future is skipped, not masked;
- the head and its cross-entropy see labelled positions only, and give the gradient in the same pass.

`install` puts it in the place of the model's forward where a loss is asked for: in training, and, without
the backward, in looks at the validation rows. The trainer and its calls stay the same.
A batch is filled up to a multiple of ROWS, here and under autograd: oneDNN builds its bfloat16 kernels anew
for each number of rows, keeps 1,024 of them, and takes half a megabyte for each. Over an epoch of rows of
many lengths that leaves 0.94 of the time and 0.89 of the memory.
"""

from __future__ import annotations

import os
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from finelab.data import IGNORE
from finelab.machine import Profile
from finelab.resources import keep_freed_memory
from finelab.train.documents import BLOCK, ROWS, Batch
from finelab.train.halves import Halves
from finelab.train.slabs import Slabs

PIECE = 16  # rows of scores at once in float32: 3 MB of 49,152 scores stay in the processor's cache
ROPE = ("default", "llama3", "linear")  # those whose frequencies do not depend on the batch


def obstacle(model: Any) -> str | None:
    """Why this model cannot take the step, in words; None when it can."""
    from peft import PeftModel
    from peft.tuners.lora import Linear

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(base).__name__ != "LlamaForCausalLM":
        return f"it is written for LlamaForCausalLM, not {type(base).__name__}"
    config = base.config
    if config.hidden_act != "silu" or config.attention_bias or config.mlp_bias:
        return "this Llama's layers are not the usual ones (silu, no bias)"
    if config.attention_dropout:
        return f"it does not apply attention_dropout ({config.attention_dropout})"
    if base.model.rotary_emb.rope_type not in ROPE:
        return f"it does not know the positions of rope type {base.model.rotary_emb.rope_type!r}"
    trained = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    if not trained or not all(".lora_A." in name or ".lora_B." in name for name in trained):
        return "something besides LoRA's A and B is trained"
    adapted = [module for module in base.modules() if hasattr(module, "lora_A")]
    if set(adapted) - set(base.model.layers.modules()):
        return "LoRA lies outside of the layers"
    if not all(type(module) is Linear and _plain(module) for module in adapted):
        return "it takes LoRA in one adapter, without dropout, bias, DoRA or a quantised base"
    return None


def _plain(module: Any) -> bool:
    (name, *others) = module.active_adapters
    dropout = isinstance(module.lora_dropout[name], torch.nn.Identity)
    biased = module.lora_B[name].bias is not None
    floating = module.base_layer.weight.is_floating_point()
    return not others and dropout and not biased and not module.use_dora.get(name, False) and floating


def install(model: Any, profile: Profile) -> str:
    """Let a PEFT model's forward take the step when it is asked for a loss, in training or without gradients.

    It then gives the loss and no logits, as Unsloth does; UNSLOTH_RETURN_LOGITS=1, which Unsloth's trainer
    sets where it keeps logits, asks for both. Where the step cannot be taken, the model computes as before;
    the sentence given back says which and why. On a CPU its flat batches are filled up all the same. With
    checkpointing, which saves the memory that the step takes, and with NEFTune's noise, which the step does
    not know, the model computes as before, too.
    """
    base = model.get_base_model()
    base.forward = vars(base).setdefault("_finelab_forward", base.forward)  # the cell may run again
    if profile.device == "cpu":
        base.forward = types.MethodType(_filled(base.forward), base)
    if not profile.fast_cpu_step:
        return f"PyTorch's autograd: {profile.decisions['fast_cpu_step'].reason}"
    if reason := obstacle(model):
        return f"PyTorch's autograd, as the step by hand does not fit: {reason}"
    keep_freed_memory()
    llama, forward = Llama(base, profile.torch_dtype()), base.forward
    step = Halves(llama) if profile.processes > 1 else llama
    adapted = next(module for module in base.modules() if hasattr(module, "lora_A"))
    embeddings = base.get_input_embeddings()

    def more_is_asked(attention_mask: Tensor | None) -> bool:
        """Whether the step cannot give it: logits, noise, the base alone, tokens after padding."""
        if adapted.disable_adapters or _padded_before(attention_mask):
            return True
        if not torch.is_grad_enabled():
            return os.environ.get("UNSLOTH_RETURN_LOGITS") == "1"
        noise = hasattr(embeddings, "neftune_noise_alpha")
        return not base.training or base.is_gradient_checkpointing or noise

    def by_hand(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        if labels is None or input_ids is None or more_is_asked(attention_mask):
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
            return forward(input_ids, attention_mask, position_ids, labels=labels, **kwargs)
        batch = Batch.of(input_ids, labels, attention_mask, position_ids)
        with torch.autocast("cpu", enabled=False):
            learns = torch.is_grad_enabled()
            total = _Step.apply(step, batch, *llama.parameters) if learns else step.score(batch)
        count = len(batch.labelled) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / max(count, 1))

    base.forward = types.MethodType(by_hand, base)
    return f"forward and backward by hand, in {profile.dtype}{', in two processes' * (step is not llama)}"


def _padded_before(attention_mask: Tensor | None) -> bool:
    """Whether a token comes after padding: the step by hand would take that for a part of its document."""
    if attention_mask is None:
        return False
    return bool((attention_mask[:, :-1] < attention_mask[:, 1:]).any())


def _filled(forward: Any) -> Any:
    """`forward`, with a flat batch filled up to a multiple of ROWS by documents of one token and no label.

    It goes without a cache: with one, transformers' mask lets each document see those before it.
    """

    def filled(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        flat = attention_mask is None and position_ids is not None
        if input_ids is not None and labels is not None and flat:
            spare = (0, -input_ids.shape[1] % ROWS)
            input_ids, position_ids = pad(input_ids, spare), pad(position_ids, spare)
            labels = pad(labels, spare, value=IGNORE)
            kwargs["use_cache"] = False
        return forward(input_ids, attention_mask, position_ids, labels=labels, **kwargs)

    return filled


class _Step(torch.autograd.Function):  # type: ignore[misc]
    """The sum of the batch's losses; its gradients are there when the forward returns."""

    @staticmethod
    def forward(ctx: Any, llama: Llama | Halves, batch: Batch, *parameters: Tensor) -> Tensor:
        loss, ctx.gradients = llama.step(batch)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.gradients, grad)


class Projection:
    """Linear layers that share their input, each with its adapter: one matrix.

    With inputs K, outputs N and ranks r, all layers' together, `matrix` is [[W, s B], [A, 0]] of shape
    (N + r, K + r). Inputs come as rows of width K + r (`room`), outputs' gradients of width N + r.
    The weight of the norm before them is a factor of each of W's and A's columns.
    """

    def __init__(self, linears: list[Any], dtype: torch.dtype, norm: Any = None) -> None:
        bases = [getattr(linear, "base_layer", linear) for linear in linears]
        self.inputs = bases[0].in_features
        self.outputs = sum(base.out_features for base in bases)
        self.adapters: list[tuple[slice, slice, Tensor, Tensor, float]] = []
        row = rank = 0
        for linear, base in zip(linears, bases, strict=True):
            if linear is not base:
                name = linear.active_adapters[0]
                A, B = linear.lora_A[name].weight, linear.lora_B[name].weight
                rows, ranks = slice(row, row + len(B)), slice(rank, rank + len(A))
                self.adapters.append((rows, ranks, A, B, linear.scaling[name]))
                rank += len(A)
            row += base.out_features
        self.matrix = torch.zeros(self.outputs + rank, self.inputs + rank, dtype=dtype)
        self.norm = torch.ones(self.inputs) if norm is None else norm.weight.detach().float()
        weights = [base.weight.detach() * self.norm for base in bases]
        self.matrix[: self.outputs, : self.inputs] = torch.cat(weights)

    @property
    def places(self) -> list[tuple[Tensor, Tensor]]:
        """Where A and s B of each adapter lie in the matrix."""
        A, B = self.matrix[self.outputs :, : self.inputs], self.matrix[:, self.inputs :]
        return [(A[ranks], B[rows, ranks]) for rows, ranks, *_ in self.adapters]

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of each adapter."""
        return [weight for *_, A, B, _ in self.adapters for weight in (A, B)]

    def refresh(self) -> None:
        """Take over the adapters' weights, which the optimizer has changed."""
        for (into_A, into_B), (_, _, A, B, scale) in zip(self.places, self.adapters, strict=True):
            torch.mul(A.detach(), self.norm, out=into_A)
            torch.mul(B.detach(), scale, out=into_B)

    def room(self, rows: int, slabs: Slabs) -> tuple[Tensor, Tensor]:
        """Uninitialised inputs, and the part of them that the caller fills."""
        x = slabs.empty(rows, self.matrix.shape[1], dtype=self.matrix.dtype)
        return x, x[:, : self.inputs]

    def room_back(self, rows: int) -> tuple[Tensor, Tensor]:
        """The same for the outputs' gradient, which is not kept."""
        dy = self.matrix.new_empty(rows, self.matrix.shape[0])
        return dy, dy[:, : self.outputs]

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The outputs, in `out` if it is given; completes `x` by x A'."""
        K, N = self.inputs, self.outputs
        if self.adapters:
            torch.mm(x[:, :K], self.matrix[N:, :K].T, out=x[:, K:])
        return torch.mm(x, self.matrix[:N].T, out=out)

    def backward(self, x: Tensor, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The inputs' gradient, and those of `parameters`; completes `dy` by dy s B."""
        K, N = self.inputs, self.outputs
        for (_, sB), (rows, ranks, *_) in zip(self.places, self.adapters, strict=True):
            torch.mm(dy[:, rows], sB, out=dy[:, N:][:, ranks])
        dA = (dy[:, N:].T @ x[:, :K]) * self.norm
        gradients = []
        for rows, ranks, _, _, scale in self.adapters:
            gradients += [dA[ranks], (dy[:, rows].T @ x[:, K:][:, ranks]).float() * scale]
        return dy @ self.matrix[:, :K], gradients


class Layer:
    """A decoder layer's four projections, with the norms in two of them."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Projection(qkv, dtype, layer.input_layernorm)
        self.o = Projection([attention.o_proj], dtype)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype, layer.post_attention_layernorm)
        self.down = Projection([mlp.down_proj], dtype)
        self.projections = [self.qkv, self.o, self.gate_up, self.down]


class Llama:
    """The model's frozen weights laid out for the step, in `dtype`; activations between layers in float32."""

    def __init__(self, base: Any, dtype: torch.dtype) -> None:
        config = base.config
        self.dtype, self.eps = dtype, config.rms_norm_eps
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // self.kv_heads  # queries that share a key
        self.head_dim = base.model.layers[0].self_attn.head_dim
        self.frequencies = base.model.rotary_emb.inv_freq.float()
        self.layers = [Layer(layer, dtype) for layer in base.model.layers]
        self.slabs = Slabs()
        self.norm = base.model.norm.weight.detach().to(dtype)
        embedding, head = base.model.embed_tokens.weight, base.lm_head.weight
        self.embedding = embedding.detach()
        same = head is embedding and head.dtype == dtype  # then it is pickled once
        self.head = self.embedding if same else head.detach().to(dtype)
        future = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1).repeat_interleave(self.group, 0)
        self.mask = torch.zeros(future.shape, dtype=dtype).masked_fill_(future, float("-inf"))

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of every adapter, in the order of the gradients."""
        return [weight for layer in self.layers for each in layer.projections for weight in each.parameters]

    def step(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The sum of the losses over the labelled positions, and its gradient by `parameters`."""
        if not batch.documents:
            return torch.zeros(()), [torch.zeros_like(each) for each in self.parameters]
        x, angles = self.begin(batch)
        saved = [self.layer(layer, x, angles, batch) for layer in self.layers]
        loss, dx = self.loss(x, batch)
        gradients: list[list[Tensor]] = []
        for layer in reversed(self.layers):
            gradients.append(self.layer_backward(layer, dx, saved.pop(), angles, batch))
        return loss, [each for layer in reversed(gradients) for each in layer]

    def score(self, batch: Batch) -> Tensor:
        """The sum of the losses alone, in the memory of one layer."""
        if not batch.documents:
            return torch.zeros(())
        x, angles = self.begin(batch)
        for layer in self.layers:
            self.layer(layer, x, angles, batch)
            self.slabs.clear()
        unit, _ = self.unit(x[batch.labelled])
        return self.cross_entropies(unit, batch.targets)

    def begin(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The first layer's input and the rows' angles; from here the adapters are as they are now."""
        for layer in self.layers:
            for projection in layer.projections:
                projection.refresh()
        self.slabs.clear()
        return self.embedding[batch.ids].float(), self.angles(batch.positions)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each row's angles; attention's 1 / sqrt(head_dim) is shared by query and key."""
        angles = positions[:, None, None] * self.frequencies
        scale = self.head_dim**-0.25
        return angles.cos() * scale, angles.sin() * scale

    def layer(self, layer: Layer, x: Tensor, angles: tuple[Tensor, Tensor], batch: Batch) -> tuple[Any, ...]:
        """Add a layer's two branches to `x`; gives what its backward needs."""
        rows, slabs = len(x), self.slabs
        x1, inputs = layer.qkv.room(rows, slabs)
        scale1 = rms_norm(x, self.eps, out=inputs)
        q, k, v = self.split(layer.qkv.forward(x1), angles, batch)
        x2, inputs = layer.o.room(rows, slabs)
        probabilities = self.attention(q, k, v, inputs, batch)
        x += layer.o.forward(x2)
        x3, inputs = layer.gate_up.room(rows, slabs)
        scale3 = rms_norm(x, self.eps, out=inputs)
        gate_up = slabs.empty(rows, layer.gate_up.outputs, dtype=self.dtype)
        gate, up = layer.gate_up.forward(x3, out=gate_up).chunk(2, 1)
        silu = torch.ops.aten.silu.out(gate, out=slabs.empty(*gate.shape, dtype=self.dtype))
        x4, inputs = layer.down.room(rows, slabs)
        torch.mul(silu, up, out=inputs)
        x += layer.down.forward(x4)
        k, values = slabs.copy(k), slabs.copy(v.transpose(1, 2))
        return x1, scale1, q, k, values, probabilities, x2, x3, scale3, gate, up, silu, x4

    def layer_backward(
        self, layer: Layer, dx: Tensor, saved: tuple[Any, ...], angles: tuple[Tensor, Tensor], batch: Batch
    ) -> list[Tensor]:
        """Turn `dx` from the gradient of a layer's output into that of its input; gives its adapters'."""
        x1, scale1, q, k, values, probabilities, x2, x3, scale3, gate, up, silu, x4 = saved
        rows, hidden = dx.shape
        dy, outputs = layer.down.room_back(rows)
        outputs.copy_(dx)
        d, down = layer.down.backward(x4, dy)
        dy, outputs = layer.gate_up.room_back(rows)
        dgate, dup = outputs.chunk(2, 1)
        torch.mul(d, silu, out=dup)
        torch.ops.aten.silu_backward.grad_input(d.mul_(up), gate, grad_input=dgate)
        d, gate_up = layer.gate_up.backward(x3, dy)
        rms_norm_backward(dx, d, x3[:, :hidden], scale3)
        dy, outputs = layer.o.room_back(rows)
        outputs.copy_(dx)
        d, o = layer.o.backward(x2, dy)
        dy, outputs = layer.qkv.room_back(rows)
        self.attention_backward(q, k, values, probabilities, d, angles, outputs, batch)
        d, qkv = layer.qkv.backward(x1, dy)
        rms_norm_backward(dx, d, x1[:, :hidden], scale1)
        return qkv + o + gate_up + down

    def split(
        self, qkv: Tensor, angles: tuple[Tensor, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries, (kv_heads, rows x group, head_dim), and keys and values, (kv_heads, seen, ...)."""
        heads = qkv.view(len(qkv), -1, self.head_dim)
        queries = self.kv_heads * self.group
        turned = rotate(heads[:, : queries + self.kv_heads], *angles).to(self.dtype)
        q = turned[:, :queries].unflatten(1, (self.kv_heads, self.group)).transpose(0, 1)
        k, v = batch.seen(turned[:, queries:]), batch.seen(heads[:, queries + self.kv_heads :])
        return self.slabs.copy(q).flatten(1, 2), k.transpose(0, 1), v.transpose(0, 1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, batch: Batch) -> list[Tensor]:
        """Write each query's weighted values into `out`; gives the weights, block by block."""
        keys, v = k.transpose(1, 2).contiguous(), v.contiguous()
        by_head = out.unflatten(1, (self.kv_heads, self.group, self.head_dim)).transpose(0, 1)
        out[batch.end :] = 0
        probabilities = []
        for begin, end, first, after in batch.blocks():
            scores = torch.bmm(q[:, begin * self.group : end * self.group], keys[:, :, first:after])
            scores[:, :, begin - end :] += self.mask[: (end - begin) * self.group, : end - begin]
            p = self.slabs.empty(*scores.shape, dtype=self.dtype)
            torch.softmax(scores, -1, out=p)
            by_head[:, begin:end] = torch.bmm(p, v[:, first:after]).unflatten(1, (-1, self.group))
            probabilities.append(p)
        return probabilities

    def attention_backward(
        self,
        q: Tensor,
        k: Tensor,
        values: Tensor,
        probabilities: list[Tensor],
        d: Tensor,
        angles: tuple[Tensor, Tensor],
        outputs: Tensor,
        batch: Batch,
    ) -> None:
        """Write the gradient of queries, keys and values, turned back, into `outputs`.

        `values` are (kv_heads, head_dim, seen): a product takes no slice of rows that it has to transpose.
        """
        queries = self.kv_heads * self.group
        d = d.unflatten(1, (self.kv_heads, self.group, self.head_dim)).transpose(0, 1).flatten(1, 2)
        dqk = torch.empty(len(outputs), queries + self.kv_heads, self.head_dim)
        dq = dqk[:, :queries].unflatten(1, (self.kv_heads, self.group)).transpose(0, 1)
        dk, dv = both = torch.zeros(2, *k.shape)
        dqk[batch.end :] = 0
        for (begin, end, first, after), p in zip(batch.blocks(), probabilities, strict=True):
            block = slice(begin * self.group, end * self.group)
            dv[:, first:after] += torch.bmm(p.transpose(1, 2), d[:, block])
            dp = torch.bmm(d[:, block], values[:, :, first:after])
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, begin:end] = torch.bmm(ds, k[:, first:after]).unflatten(1, (-1, self.group))
            dk[:, first:after] += torch.bmm(ds.transpose(1, 2), q[:, block])
        dk, dv = batch.by_row(both.permute(2, 0, 1, 3)).unbind(1)
        dqk[:, queries:] = dk
        heads = outputs.unflatten(1, (-1, self.head_dim))
        heads[:, : queries + self.kv_heads] = rotate(dqk, angles[0], -angles[1])
        heads[:, queries + self.kv_heads :] = dv

    def loss(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of cross-entropies at the labelled rows, and its gradient by `x`."""
        rows = x[batch.labelled]
        unit, scale = self.unit(rows)
        gradient = torch.empty_like(unit)
        loss = self.cross_entropies(unit, batch.targets, gradient)
        drows = torch.zeros_like(rows)
        rms_norm_backward(drows, gradient.mul_(self.norm)[: len(rows)], unit[: len(rows)], scale)
        return loss, torch.zeros_like(x).index_copy_(0, batch.labelled, drows)

    def unit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows before the last norm's weight, filled up by zeros, and 1 / rms of each."""
        unit = torch.zeros(len(rows) + -len(rows) % ROWS, rows.shape[1], dtype=self.dtype)
        return unit, rms_norm(rows, self.eps, out=unit[: len(rows)])

    def cross_entropies(self, unit: Tensor, targets: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The sum over the rows of `unit`; its gradient by the normed rows goes into `gradient`.

        A slab of scores is there at once: in bfloat16 256 rows take 1.05 times as long as 512, 64 take 1.4.
        """
        loss, vocabulary = torch.zeros((), dtype=torch.float64), len(self.head)
        most = max(self.slabs.size // (vocabulary * self.dtype.itemsize) // ROWS, 1) * ROWS
        room = self.slabs.empty(min(most, len(unit)), vocabulary, dtype=self.dtype)
        for begin in range(0, len(targets), most):
            chunk = slice(begin, begin + most)
            hidden = unit[chunk] * self.norm
            scores = torch.mm(hidden, self.head.T, out=room[: len(hidden)])
            for piece, labels in zip(scores.split(PIECE), targets[chunk].split(PIECE), strict=False):
                loss += cross_entropy(piece[: len(labels)], labels)
            if gradient is not None:
                torch.mm(scores, self.head, out=gradient[chunk])
        return loss.float()


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """The sum of the rows' losses; turns `scores` into its gradient by them. In float32.

    A label whose probability float32 cannot hold counts 87 nats.
    """
    p, labels = torch.softmax(scores, -1, dtype=torch.float32), targets[:, None]
    right = p.gather(1, labels)
    scores.copy_(p.scatter_(1, labels, right - 1))
    return -right.clamp_min_(torch.finfo(p.dtype).tiny).log_().sum(dtype=torch.float64)


def rms_norm(x: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x / rms(x) into `out`; gives 1 / rms(x)."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    torch.mul(x, scale, out=out)
    return scale


def rms_norm_backward(dx: Tensor, d: Tensor, unit: Tensor, scale: Tensor) -> None:
    """Add the gradient by the norm's input to `dx`: (d - unit mean(d unit)) / rms(x)."""
    shared = torch.sum(d * unit, -1, keepdim=True, dtype=torch.float32) / unit.shape[1]
    dx.addcmul_(d.float().addcmul_(unit, shared, value=-1), scale)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of every head by its position's angle, in float32."""
    a, b = heads.float().chunk(2, -1)
    turned = torch.empty(heads.shape)
    first, second = turned.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return turned
