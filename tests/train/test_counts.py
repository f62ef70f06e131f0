"""What a step gives a GPU to do, counted on the CPU: the bars are here, and nowhere else."""

import pytest
import torch
from count_kernels import count_graphs, count_steps, waste
from counting import Recorder, compiled_graphs, compiled_kernels

# Of a steady step with compiled layers: kernels by stage, waits for the device, copies to it; and padding's share of
# the tokens, on SLAKE's lengths.
KERNELS = {"2": 750, "3": 2200}
HOST_READS, COPIES, WASTE = 0, 1, 0.06


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stage", KERNELS)
def test_a_steady_step_takes_few_kernels_no_host_reads_and_one_copy(stage):
    [step], _ = count_steps(stage)
    found = step.sums()
    assert found["kernels"] <= KERNELS[stage], step.kernels
    assert found["host_reads"] <= HOST_READS, step.host_reads
    assert found["copies"] <= COPIES, step.copies


def test_each_shape_is_compiled_once_and_nothing_later():
    first, second, shapes = count_graphs("2")
    assert shapes > 1 and first <= shapes + 1 and second == first


def test_packing_wastes_few_tokens():
    assert 0 < waste() <= WASTE


def test_operations_reads_and_copies_are_told_apart():
    recorder = Recorder()
    first, chosen = torch.ones(4, 4), torch.tensor([True, False, True, False])
    with recorder:
        (first.view(16) + 1).sum().item()  # two kernels, and one read
        first[chosen]  # a size that depends on numbers
        with recorder.phase("aside"):
            torch.tensor([1.0, 2.0]).mul_(2)
        with recorder.paused():
            first.exp()
    assert recorder.counts.sums() == {"kernels": 3, "host_reads": 2, "copies": 1}
    assert recorder.counts.kernels == {"other": 2, "aside": 1} and recorder.counts.copies == {"aside": 1}


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, states):
        return states + self.second(torch.nn.functional.silu(self.first(states)))


def test_a_compiled_layer_has_the_kernels_that_inductor_writes():
    torch.manual_seed(0)
    layer, states = Layer(), torch.randn(32, 8, requires_grad=True)
    expected = layer(states)
    recorder = Recorder()
    with compiled_graphs(recorder) as graphs:
        layer.compile(fullgraph=True, dynamic=False)
        layer(states).sum().backward()
        with recorder, recorder.phase("forward"):
            again = layer(states)
    torch.testing.assert_close(again, expected)
    # Two products, one loop for the activation, one for the sum with the input.
    assert len(graphs[0]) == 4 and recorder.counts.kernels["forward"] == 4
    assert len(graphs) == 2 and len(graphs[1]) > 4


def test_calls_in_generated_code_are_read():
    code = """
cpp_fused_add_0 = async_compile.cpp_pybinding(['const float*'], '''text''')
async_compile.wait(globals())
    def call(self, args):
        buf0 = empty_strided_cpu((3, ), (1, ), torch.float32)
        extern_kernels.mm(arg0, reinterpret_tensor(arg1, (3, ), (1, )), out=buf0)
        cpp_fused_add_0(buf0)
        buf1 = torch.ops.aten.view.default(buf0, [3])
        buf2 = torch.ops.triptych_count.attention.default(buf0, buf0, buf0)
        buf3 = torch.ops.triptych_count.attention_backward.default(buf0, buf0, buf0, buf0)
def get_args():
    cpp_fused_add_0(1)
"""
    names = [name.rsplit(".", 2)[-2:] for name in compiled_kernels(code)]
    assert len(names) == 5 and names[3] == names[4] == ["attention_backward", "default"]
