"""What a GPU would be given to do, counted on a CPU: kernels, host reads, copies and compiled graphs, by phase.

Counts do not depend on the device that computes, so that they need no GPU and are the same every time. An operation of
torch that does more than look at a tensor in another way is one kernel. Compiled layers have the kernels of the code
that inductor writes for them: each call of a library and each fused loop. That code is not built, and the graph it was
written from computes in its place; so no compiler is needed. inductor's C++ backend stands for Triton's, which decides
on fusion by the same rules, but may split a long reduction in two.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
from torch._inductor import async_compile, compile_fx
from torch._inductor import config as inductor
from torch._inductor.codegen.cpp import CppScheduling
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from triptych.model import flex

# Operations that give a tensor another shape, or room, or mark a place for profilers: no kernel.
VIEWS = {
    "view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "detach_", "alias",
    "as_strided", "_unsafe_view", "split", "chunk", "split_with_sizes", "unsafe_split", "permute", "unflatten",
    "_reshape_alias", "unbind", "unfold", "diagonal", "view_as_real", "lift", "set_", "view_as_complex", "resize_",
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "is_same_size",
    "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
# Operations whose result the host waits for: a number, or a size that depends on numbers.
READS = {
    *("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "unique_consecutive", "unique_dim"),
    *("masked_select", "bincount", "repeat_interleave"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
HOST_METHODS = ("tolist", "numpy", "cpu")  # of a tensor: they wait, too, and dispatch nothing on a CPU
# A call in inductor's code that starts a kernel.
CALL = re.compile(r"^\s+(?:\w+ = )?(extern_kernels\.\w+|cpp_fused\w*|torch\.ops\.[\w.]+|aten\.[\w.]+)\(", re.MULTILINE)
STAND_IN = "triptych_count"  # namespace of operations that stand for one GPU kernel each
ATTENTION_BACKWARD = 2  # kernels of a fused attention's backward pass: the sums of its rows, and all its gradients


@dataclass
class Counts:
    """What was counted, by phase.

    Attributes:
        kernels: kernels by phase.
        host_reads: waits of the host for the device, by phase.
        copies: copies from the host to the device, by phase.
        operations: names of kernels and reads, by phase.
    """

    kernels: Counter = field(default_factory=Counter)
    host_reads: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)
    operations: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))

    def sums(self) -> dict[str, int]:
        """Give the sums over phases."""
        return {name: getattr(self, name).total() for name in ("kernels", "host_reads", "copies")}


class Recorder(TorchDispatchMode):
    """Counts what runs while it is entered, in this thread, into `counts`."""

    OTHER = "other"

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.phases = [self.OTHER]
        self.on = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Tell dynamo that compiled code may run in it."""
        return True

    @property
    def entered(self) -> bool:
        """Whether anything is counted now."""
        return self.on and torch._C._len_torch_dispatch_stack() > 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count one operation, and let it run."""
        if self.on:
            self.add(function._schema.name.split("::")[1], args)
        return function(*args, **(kwargs or {}))

    def add(self, name: str, args: tuple = ()) -> None:
        """Count an operation."""
        phase, counts = self.phases[-1], self.counts
        if name in VIEWS:
            return
        counts.operations[phase][name] += 1
        if name in READS or (name in INDEXING and any(map(_is_mask, args[1] or []))):
            counts.host_reads[phase] += 1
        elif name == "lift_fresh":  # a tensor that is made of the host's numbers
            counts.copies[phase] += 1
        else:
            counts.kernels[phase] += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs meanwhile as part of a phase."""
        self.phases.append(name)
        try:
            yield
        finally:
            self.phases.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def counted(self, name: str, function: Callable) -> Callable:
        """Make a function a phase."""

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return inside

    def reading(self, method: Callable) -> Callable:
        """Make a method of tensors count as a host read."""

        @wraps(method)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if self.entered:
                self.counts.host_reads[self.phases[-1]] += 1
                self.counts.operations[self.phases[-1]][method.__name__] += 1
            return method(*args, **kwargs)

        return inside


def _is_mask(index: object) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def compiled_kernels(code: str) -> list[str]:
    """List the kernels that the code of a compiled graph starts, as inductor's C++ backend writes it."""
    body = code.split("async_compile.wait", 1)[-1].split("def get_args", 1)[0]
    calls = [name for name in CALL.findall(body) if not VIEWS.intersection(name.split("."))]
    return [name for name in calls for _ in range(ATTENTION_BACKWARD if "attention_backward" in name else 1)]


@contextmanager
def attention_on_cpu() -> Iterator[None]:
    """Let a CPU compute the backward pass of attention in tiles, which torch keeps for checking alone."""
    from torch.nn.attention import flex_attention

    with mock.patch.object(flex_attention, "_validate_device", lambda *_: None):
        yield


@torch.library.custom_op(f"{STAND_IN}::attention", mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return torch.empty_like(query).copy_(output)


@torch.library.custom_op(f"{STAND_IN}::attention_backward", mutates_args=())
def _attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> list[torch.Tensor]:
    shared, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    keys, values = (tensor.repeat_interleave(shared, 1).float() for tensor in (key, value))
    scores = query.float() @ keys.mT * scale
    weights = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    of_weights = gradient.float() @ values.mT
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
    found = of_scores @ keys, of_scores.mT @ query.float(), weights.mT @ gradient.float()
    summed = [found[0], *(one.unflatten(1, (-1, shared)).sum(2) for one in found[1:])]
    return [torch.empty_like(like).copy_(one) for one, like in zip(summed, (query, key, value), strict=True)]


@_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(query)


@_attention_backward.register_fake
def _(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in tensors[1:]]


def _keep_inputs(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(_attention_backward(gradient, *ctx.saved_tensors))


_attention.register_autograd(_gradients, setup_context=_keep_inputs)


def _one_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Take the place of FlexAttention."""
    return _attention(query, key, value)


@contextmanager
def compiled_graphs(recorder: Recorder) -> Iterator[list[list[str]]]:
    """Let compiled layers compute from their graphs meanwhile, and count the kernels of inductor's code.

    Attention in tiles, for which inductor has no backward pass on a CPU, is one operation that stands for it.

    Yields:
        The kernels of each graph by name, forward and backward ones alike, as they are compiled.
    """
    kernels: list[list[str]] = []

    def inner_compile(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Callable:
        plain = torch.fx.GraphModule(graph, _copied(graph.graph))
        kernels.append(compiled_kernels(compile_fx.compile_fx_inner(graph, inputs, **options).source_code))
        number = len(kernels[-1])

        def run(boxed: list) -> Any:
            own = list(boxed)
            boxed.clear()
            if recorder.entered:
                recorder.counts.kernels[recorder.phases[-1]] += number
                recorder.counts.operations[recorder.phases[-1]]["compiled"] += number
            with recorder.paused():
                return plain(*own)

        run._boxed_call = True
        return run

    # Joined tensors are read where they are used, as on a GPU; the C++ backend would write each part first.
    options = {"force_disable_caches": True, "cpp.simdlen": 1, "force_pointwise_cat": True}
    with ExitStack() as stack:
        patch = mock.patch.object
        compile_graph = partial(compile_fx.compile_fx, inner_compile=inner_compile)
        stack.enter_context(patch(compile_fx, "compile_fx", compile_graph))
        stack.enter_context(patch(async_compile.AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None))
        # One function for each loop, as on a GPU.
        stack.enter_context(patch(CppScheduling, "ready_to_flush", lambda _: True))
        stack.enter_context(inductor.patch(options))
        stack.enter_context(patch(flex, "flex_attention", _one_kernel))
        torch._dynamo.reset()
        try:
            yield kernels
        finally:
            torch._dynamo.reset()


def _copied(graph: torch.fx.Graph) -> torch.fx.Graph:
    copy = torch.fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy
