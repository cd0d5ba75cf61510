"""fast_imports skips torch's compiler; afterwards all libraries work as usual, including the compiler."""

import subprocess
import sys


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_libraries_and_the_compiler_work_afterwards() -> None:
    run("""
import gc, sys
from clipbatch.stages import fast_import as startup
with startup.fast_imports(transformers=False):
    import clipbatch.stages.pipeline
import clipbatch.stages.decode.cpu_decoders
assert "transformers" not in sys.modules
import transformers
assert transformers.__version__
assert gc.isenabled()
assert "torch._dynamo" not in sys.modules
assert "torch._dynamo.utils" not in sys.modules

import open_clip.timm_model, torch, torchvision
assert open_clip.timm_model.timm.create_model("test_resnet")
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
assert "torch._dynamo" not in sys.modules
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")  # as its rare case does

import torch._dynamo.utils
assert asked is torch._dynamo.utils.is_compile_supported("cpu")
assert torch.compiler.disable(len)([1]) == 1
assert torch.compiler.disable(len) is not len
double = torch.compile(lambda pixels: pixels * 2, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
""")


def test_other_attributes_of_the_compiler_are_the_real_ones() -> None:
    run("""
from clipbatch.stages import fast_import as startup
with startup.fast_imports(transformers=False):
    from torch._dynamo.utils import counters, is_compile_supported
import torch._dynamo.utils
assert counters is torch._dynamo.utils.counters
assert is_compile_supported("cpu") is torch._dynamo.utils.is_compile_supported("cpu")
with startup.fast_imports(transformers=False):  # and where it is there already
    from torch._dynamo.utils import is_compile_supported
assert is_compile_supported is torch._dynamo.utils.is_compile_supported
""")
