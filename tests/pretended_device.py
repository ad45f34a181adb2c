"""A GPU pretended on the CPU: torch refuses what CUDA would, and what CUDA waits for is counted.

A tensor "on the device" wraps one on the CPU. At each operator CUDA's rules on mixed devices hold,
autocast casts as CUDA's does, and three things are counted by the line that asked for them: waits
of the CPU for the device, copies to the device, and operators. Kernels, nccl, CUDA's random numbers
and time it does not show. The calls are private ones of torch, of ``TORCH``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

TORCH = "2.13"
"""The version whose private calls these are."""

NAME = "pretended"
"""The device's type."""

aten = torch.ops.aten

WAITS = {
    *("nonzero", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "bincount"),
    *("_local_scalar_dense", "equal", "is_nonzero", "item", "linalg_svdvals", "_linalg_svd"),
}
"""Operators whose result the CPU waits for."""

INDEXING = {"index", "_unsafe_index"}
INDEX_PUT = {"index_put_", "index_put", "_index_put_impl_"}
MIXES = {"copy_", "_fused_adam_", "_fused_adamw_"}
"""Operators that take tensors of both devices."""

TAKES_SCALARS = {"masked_fill", "masked_fill_", "fill_", "where", "lerp", "lerp_"}
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
    ),
    *("detach", "permute", "split", "split_with_sizes", "unbind", "as_strided", "alias", "unfold"),
    *("lift_fresh", "_reshape_alias", "diagonal", "empty", "empty_strided", "empty_like"),
}
"""Operators that start no kernel."""


@dataclass
class Log:
    """What was asked of the device, by the lines that asked.

    Attributes:
        waits: for results, which leave the device idle.
        copies: to the device.
        operators: about the kernels that are started.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    operators: int = 0

    def since(self, before: Log) -> Log:
        """What has come on top of an earlier state."""
        return Log(
            self.waits - before.waits,
            self.copies - before.copies,
            self.operators - before.operators,
        )

    def copy(self) -> Log:
        """The state as it is now."""
        return Log(Counter(self.waits), Counter(self.copies), self.operators)


LOG = Log()


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


class DeviceTensor(torch.Tensor):
    """A tensor on the device, around one on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.detach().to("cpu").tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy; use Tensor.cpu()")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def as_subclass(self, cls: Any) -> Any:  # torch's would lose ``inner``
        alias = self.view_as(self)
        both = cls is not Tensor
        alias.__class__ = type(cls.__name__, (cls, DeviceTensor), {}) if both else DeviceTensor
        return alias

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def new_tensor(self, data: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(self.device)

    def __repr__(self, **kwargs: Any) -> str:
        return f"device {self.inner!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        made = DeviceTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def pretend() -> None:
    """Let torch have the device from now on, and believe that there is CUDA."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_initialized": True,
        "get_rng_state": state,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "get_device_properties": SimpleNamespace(total_memory=2**36, name="pretended"),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("manual_seed", "manual_seed_all", "synchronize", "empty_cache", "set_rng_state"):
        setattr(torch.cuda, name, lambda *_, **__: None)
    _autocast_as_cuda()
    torch._C._set_only_lift_cpu_tensors(True)
    _Everywhere().__enter__()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator under CUDA's rules, on the wrapped tensors."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    wrapped = [x for x in tensors if isinstance(x, DeviceTensor)]
    plain = [x for x in tensors if not isinstance(x, DeviceTensor)]
    asked = kwargs.get("device")
    to_device = asked is not None and torch.device(asked).type == NAME
    if not wrapped and not to_device:
        return func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    if wrapped and plain:
        _refuse_mixed(func, name, args, kwargs, plain)
    stays = asked is None or to_device
    _count(name, args, kwargs, bool(wrapped), to_device, stays)

    whole = {id(x.inner): x for x in wrapped}
    args, kwargs = tree_map(_unwrapped, (args, kwargs))
    if to_device:
        kwargs["device"] = torch.device("cpu")
    if name == "_to_copy":
        kwargs.pop("non_blocking", None)
    with torch.inference_mode(False), torch.no_grad():
        found = func(*args, **kwargs)
        if stays:
            found = tree_map(lambda x: _wrapped(x, whole), found)
    return found


def _wrapped(x: Any, whole: dict[int, DeviceTensor]) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, DeviceTensor):
        return x
    return whole[id(x)] if id(x) in whole else DeviceTensor(x)


def _unwrapped(x: Any) -> Any:
    if isinstance(x, DeviceTensor):
        return x.inner
    on_device = isinstance(x, torch.device) and x.type == NAME
    return torch.device("cpu") if on_device else x


def _refuse_mixed(func: Any, name: str, args: Any, kwargs: Any, plain: list[Tensor]) -> None:
    """CUDA's rules on operands of both devices.

    Raises:
        RuntimeError: where CUDA would; names the line.
    """
    fault = ""
    pointwise = torch.Tag.pointwise in func.tags
    out = kwargs.get("out")
    if name in INDEXING or name in INDEX_PUT:
        if not isinstance(args[0], DeviceTensor):
            fault = "a tensor of the CPU and indices or values of the device"
        elif name in INDEX_PUT and not isinstance(args[2], DeviceTensor) and args[2].dim():
            fault = "values of the CPU put into a tensor of the device"
    elif name in MIXES:
        pass
    elif any(x.dim() for x in plain):
        fault = f"tensors of both devices, of the CPU {[[*x.shape] for x in plain]}"
    elif not (pointwise or name in TAKES_SCALARS):
        fault = "a number of the CPU where no number may be"
    elif out is not None and not isinstance(out, DeviceTensor):
        fault = "a result of the CPU"
    if fault:
        raise RuntimeError(f"{name}: {fault}, at {_asking()}")


def _count(
    name: str, args: Any, kwargs: Any, from_device: bool, to_device: bool, stays: bool
) -> None:
    """Write down what an operator asks of the device."""
    LOG.operators += name not in VIEWS
    waits, copies = name in WAITS, 0
    if name in INDEXING or name in INDEX_PUT:
        indices = [x for x in args[1] if x is not None]
        is_mask = any(x.dtype in (torch.bool, torch.uint8) for x in indices)
        waits = is_mask and (name in INDEXING or args[2].numel() != 1)
        copies = sum(not isinstance(x, DeviceTensor) for x in indices)
    elif name == "repeat_interleave":
        waits = kwargs.get("output_size") is None
    elif name == "copy_":
        into, source = (isinstance(x, DeviceTensor) for x in args[:2])
        copies, waits = into and not source, source and not into
    elif name == "_to_copy":
        copies = to_device and not from_device
        waits = from_device and not stays and not kwargs.get("non_blocking")
    if waits:
        LOG.waits[f"{name} at {_asking()}"] += 1
    if copies:
        LOG.copies[f"{name} at {_asking()}"] += int(copies)


def _asking() -> str:
    """The innermost lines of RecBole's or ours that are being run."""
    frame: Any = sys._getframe(2)
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        path = frame.f_code.co_filename
        if "recbole" in path:
            lines.append(f"{path.rpartition('recbole')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "backward or optimizer"


_LIBRARIES: list[Any] = []  # what is registered lasts as long as these


def _autocast_as_cuda() -> None:
    """Products in the low type, norms, softmax and losses in float32."""
    key = "AutocastPrivateUse1"
    everything = torch.library.Library("_", "IMPL", key)
    everything.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", key)
    _LIBRARIES.extend([everything, library])
    below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def is_cast(x: Any) -> bool:
        floats = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return floats and x.device.type == NAME

    def in_type(operator: Any, dtype: Callable[[], torch.dtype]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(below):
                cast = tree_map(lambda x: x.to(dtype()) if is_cast(x) else x, (args, kwargs))
                return operator(*cast[0], **cast[1])

        return call

    def in_widest(operator: Any) -> Any:
        def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(below):
                if all(x.is_floating_point() for x in tensors):
                    wide = any(x.dtype == torch.float32 for x in tensors)
                    dtype = torch.float32 if wide else tensors[0].dtype
                    tensors = [x.to(dtype) for x in tensors]
                return operator(tensors, *args, **kwargs)

        return call

    for name in (
        *("linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "mv"),
        "scaled_dot_product_attention",
    ):
        operator = getattr(aten, name).default
        library.impl(name, in_type(operator, lambda: torch.get_autocast_dtype(NAME)))
    for name in (
        *("layer_norm", "softmax.int", "log_softmax.int", "cross_entropy_loss", "nll_loss", "exp"),
        *("log", "norm.ScalarOpt_dim", "pow.Tensor_Scalar", "cumsum", "cosine_similarity"),
        *("binary_cross_entropy_with_logits", "mse_loss", "sum", "sum.dim_IntList"),
    ):
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(aten, packet), overload or "default")
        library.impl(name, in_type(operator, lambda: torch.float32))
    for name in ("cat", "stack"):
        library.impl(name, in_widest(getattr(aten, name).default))
