"""Where the time of a training step goes, and what it could be: model FLOPs, the machine's rates, a profile by part."""

import time
from typing import Any

import torch
from llava import WIDTH
from torch import nn
from torch.profiler import profile, record_function
from triptych.config.stages import Lora
from triptych.model.architectures import head_size
from triptych.model.packing import PADDING, TEXT, Batch

PARTS = (
    "frozen linear layers",
    "attention: rotary positions, scores, softmax, values",
    "LoRA",
    "connector",
    "norms",
    "gate of the MLP",
    "output head and loss",
    "embeddings, mask, residuals, other",
    "optimiser, clipping",
    "Python between operations",
)
LAYERS, ATTENTION, LORA, CONNECTOR, NORMS, GATE, HEAD, OTHER, OPTIMISER, PYTHON = PARTS
PACKING = "beside it, in a thread: packing and reading of features"
PRODUCTS = "all matrix products, in whichever part"


def layer_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a Llama layer's matrices."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * head_size(config)
    attention = {"q_proj": (hidden, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return attention | {"o_proj": (hidden, hidden)} | mlp


def model_flops(batch: Batch, config: Any, lora: Lora | None) -> float:
    """FLOPs that one step needs; see the top of bench_train.py."""
    hidden, layers, shapes = config.hidden_size, config.num_hidden_layers, layer_shapes(config)
    real = batch.blocks != PADDING
    tokens, image, answers = int(real.sum()), int((batch.image_index != TEXT).sum()), len(batch.targets)
    pairs = int((batch.attention_mask()[:, 0] & real[:, :, None]).sum())
    weights = layers * sum(outputs * inputs for outputs, inputs in shapes.values())
    frozen = 2 * (2 * weights * tokens + 2 * hidden * config.vocab_size * answers)
    attention = 3 * 4 * hidden * layers * pairs
    connector = (2 * 2 * WIDTH * hidden + 3 * 2 * hidden * hidden) * image
    adapted = sum(sum(shapes[name]) for name in lora.target_modules) if lora else 0
    adapters = 3 * 2 * lora.rank * adapted * layers * tokens if lora else 0
    return frozen + attention + connector + adapters


def now() -> float:
    """The clock in seconds, after all that a GPU was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm_rate(dtype: torch.dtype, device: torch.device, tries: int = 20) -> float:
    """The device's highest rate of matrix products, FLOP/s: best of the tries of each shape."""
    shapes = [(rows, 576, 1536) for rows in (160, 480, 960, 2048)] + [(1024, 1024, 1024)]
    if device.type == "cuda":
        shapes = [(rows, 2048, 5632) for rows in (2048, 4096, 8192)] + [(8192, 8192, 8192)]
    rates = []
    for rows, inner, columns in shapes:
        left, right = (torch.randn(size, inner).to(device, dtype) for size in (rows, columns))
        for _ in range(tries):
            start = now()
            for _ in range(4):
                left @ right.T
            rates.append(4 * 2 * rows * inner * columns / (now() - start))
    return max(rates)


def layers_rate(tokens: int, config: Any, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of all frozen layers' matrix products, forward and backward, at so many tokens; best of three."""
    shapes = list(layer_shapes(config).values())
    layers = [torch.randn(shape).to(device, dtype) for _ in range(config.num_hidden_layers) for shape in shapes]
    sizes = {size for shape in shapes for size in shape}
    inputs, gradients = ({size: torch.randn(tokens, size).to(device, dtype) for size in sizes} for _ in range(2))
    rates = []
    for _ in range(3):
        start = now()
        for weight in layers:
            inputs[weight.shape[1]] @ weight.T
        for weight in layers:
            gradients[weight.shape[0]] @ weight
        rates.append(2 * 2 * tokens * sum(map(torch.numel, layers)) / (now() - start))
    return max(rates)


def label_modules(model: nn.Module) -> None:
    """Let the profiler see which of PARTS a module's forward pass belongs to."""

    def part(name: str, module: nn.Module) -> str | None:
        if name.startswith("connector"):
            return CONNECTOR
        if "lora_" in name or hasattr(module, "lora_A"):
            return LORA
        if isinstance(module, nn.Linear):
            return HEAD if name.endswith("lm_head") else LAYERS
        ends = {"self_attn": ATTENTION, "mlp": GATE}
        return NORMS if type(module).__name__.endswith("Norm") else ends.get(name.rsplit(".", 1)[-1])

    def label(module: nn.Module, name: str) -> None:
        open_ones = []
        module.register_forward_pre_hook(lambda *_: open_ones.append(record_function(name).__enter__()))
        module.register_forward_hook(lambda *_: open_ones.pop().__exit__(None, None, None))

    for name, module in model.named_modules():
        if found := part(name, module):
            label(module, found)


def breakdown(profiler: profile, seconds: float, vocabulary: int) -> dict[str, float]:
    """Share of `seconds` of each of PARTS, and of PRODUCTS.

    A forward operation belongs to the innermost module that is labelled, a backward one to its forward operation's
    part, which has the same sequence number. Time is the processor's, or the GPU's where there is one. Time between
    operations is Python's, and the profiler's own; a GPU waits in it.
    """
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CPU]
    events.sort(key=lambda event: event.time_range.start)
    taken = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    forward: dict[int, str] = {}
    shares = dict.fromkeys([*PARTS, PRODUCTS], 0.0)
    for event in events:
        part, parent = OTHER, event
        sizes = {size for shape in event.input_shapes or [] for size in shape if isinstance(size, int)}
        while parent is not None:
            if parent.name in PARTS:
                part = parent.name
            elif parent.name.startswith(("Optimizer.", "aten::linalg_vector_norm", "aten::_foreach")):
                part = OPTIMISER
            elif parent.name.startswith("autograd::engine"):
                part = forward.get(parent.sequence_nr, OTHER)
            else:
                parent = parent.cpu_parent
                continue
            break
        else:
            if vocabulary in sizes and event.name != "aten::embedding":
                part = HEAD
            if event.sequence_nr >= 0:
                forward[event.sequence_nr] = part
        if parent is not None and parent.name in PARTS and event.sequence_nr >= 0:
            forward[event.sequence_nr] = part
        share = getattr(event, taken) / 1e6 / seconds
        shares[part] += share
        if event.name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            shares[PRODUCTS] += share
    shares[PYTHON] += 1 - sum(shares[part] for part in PARTS)
    return shares
