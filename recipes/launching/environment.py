"""The environment of the shell that starts a training, made harmless: the recipe decides.

Accelerate and torch read many variables before, or in place of, what a program tells them. Other
launchers, containers and `accelerate config` leave such variables behind. Here each is taken out
and reported, or the launch is refused by the variable's name. No torch here: this comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from recipes.config.settings import RecipeError

# Families of variables that launchers and libraries read. Whole families are taken out, with
# variables of newer versions; `_KEPT` and `_KEPT_PREFIXES` have the exceptions.
_FAMILIES = (
    "ACCELERATE_",
    "AOTINDUCTOR_",
    "AOTI_",
    "AOT_",
    "CUTEDSL_",
    "CUTLASS_",
    "DNNL_",
    "FBGEMM_",
    "FSDP_",
    "INDUCTOR_",
    "KMP_",
    "MEGATRON_LM_",
    "MKL_",
    "NNPACK_",
    "OMP_",
    "ONEDNN_",
    "PARALLELISM_CONFIG_",
    "PJRT_",
    "PYTORCH_",
    "TORCH_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "XLA_",
    "XNNPACK_",
    "CUBLAS_EMULAT",
)
# Single variables that change what is computed.
_NAMES = frozenset(
    {
        "ATEN_CPU_CAPABILITY",
        "DISABLE_ADDMM_CUDA_LT",
        "ENABLE_PERSISTENT_TMA_MATMUL",
        "ENABLE_TEMPLATE_TMA_STORE",
        "ENABLE_TMA_LOAD_FOR_TEMPLATE_EPILOGUE",
        "FORK_LAUNCHED",
        "FX_PATCH_GETITEM",
        "NVIDIA_TF32_OVERRIDE",
        "OPENBLAS_CORETYPE",
        "TENSORIFY_PYTHON_SCALARS",
        "TRITON_F32_DEFAULT",
        "TRITON_INTERPRET",
        "TRITON_USE_META_WS",
        "USE_TORCH_XLA",
    }
)
# Variables on the launch itself, memory, waiting, the network, logs and caches: none of them
# decides a number. DeepSpeed's settings, which might, are compared with the recipe once DeepSpeed
# has read them.
_KEPT_PREFIXES = (
    "ACCELERATE_DEEPSPEED_",
    "OMP_DISPLAY_",
    "PYTORCH_KERNEL_CACHE",
    "PYTORCH_JIT_LOG",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_COMPILE_DEBUG",
    "TORCH_ELASTIC_",
    "TORCH_EXTENSION",
    "TORCH_FR_",
    "TORCH_GLOO_",
    "TORCH_LOG",
    "TORCH_NCCL_",
    "TORCH_PROFILER_",
    "TORCH_SHOW_",
)
_KEPT = frozenset(
    {
        "ACCELERATE_CONFIG_DS_FIELDS",
        "ACCELERATE_CPU_AFFINITY",
        "ACCELERATE_DEBUG_MODE",
        "ACCELERATE_ENABLE_RICH",
        "ACCELERATE_LOG_LEVEL",
        "ACCELERATE_USE_CPU",
        "ACCELERATE_USE_DEEPSPEED",
        "DNNL_VERBOSE",
        "KMP_AFFINITY",
        "KMP_BLOCKTIME",
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "KMP_LIBRARY",
        "KMP_SETTINGS",
        "KMP_STACKSIZE",
        "KMP_VERSION",
        "KMP_WARNINGS",
        "MKL_INTERFACE_LAYER",
        "MKL_SERVICE_FORCE_INTEL",
        "MKL_THREADING_LAYER",
        "MKL_VERBOSE",
        "MKL_VERBOSE_OUTPUT_FILE",
        "OMP_AFFINITY_FORMAT",
        "OMP_NUM_THREADS",
        "OMP_PLACES",
        "OMP_PREFIX",
        "OMP_PROC_BIND",
        "OMP_STACKSIZE",
        "OMP_WAIT_POLICY",
        "ONEDNN_VERBOSE",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ENABLE_MPS_FALLBACK",
        "PYTORCH_HIP_ALLOC_CONF",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO",
        "PYTORCH_NO_CUDA_MEMORY_CACHING",
        "PYTORCH_NVCC",
        "PYTORCH_NVML_BASED_CUDA_CHECK",
        "TORCHDYNAMO_VERBOSE",
        "TORCHINDUCTOR_COMPILE_THREADS",
        "TORCH_ADDR2LINE_BINARY",
        "TORCH_CPP_LOG_LEVEL",
        "TORCH_CUDA_ARCH_LIST",
        "TORCH_DEVICE_BACKEND_AUTOLOAD",
        "TORCH_DISABLE_ADDR2LINE",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        "TORCH_DISTRIBUTED_DEBUG",
        "TORCH_DIST_INIT_BARRIER",
        "TORCH_DONT_CHECK_COMPILER_ABI",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
        "TORCH_HOME",
        "TORCH_HUB",
        "TORCH_INDUCTOR_INSTALL_GXX",
        "TORCH_MODEL_ZOO",
        "TORCH_NO_COMPILER_WRAPPER",
        "TORCH_SERIALIZATION_DEBUG",
        "TORCH_SYMBOLIZE_MODE",
        "TORCH_TRACE",
        "TORCH_USE_CUDA_DSA",
        "TORCH_USE_RTLD_GLOBAL",
        "TORCH_WARM_POOL",
        "TORCH_XPU_ARCH_LIST",
    }
)
# These are set on purpose: each is refused, with the setting that does what was wanted.
_ASKED_FOR = {
    "ACCELERATE_MIXED_PRECISION": "precision is the recipe's: set speed.precision, and launch with"
    " --mixed_precision no (entropy models would be cast too)",
    "ACCELERATE_DYNAMO_BACKEND": "compiling is the recipe's: set speed.compile=true, and launch"
    " with --dynamo_backend no",
    "ACCELERATE_USE_FSDP": "FSDP is not supported: use recipes/accelerate/multi-gpu.yaml, or"
    " zero1.yaml to share out the optimizer's state",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported: use"
    " recipes/accelerate/multi-gpu.yaml",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "only data parallelism and ZeRO are supported: use"
    " recipes/accelerate/multi-gpu.yaml",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's launcher is not supported: use `accelerate launch`",
}
# A value that switches nothing on.
_NEUTRAL = frozenset({"", "0", "no", "false", "none", "default"})
# Variables that torch's launchers read in place of options that are not given.
_LAUNCHER = ("PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")


def refuse_unsupported(environment: Mapping[str, str]) -> None:
    """Raise `RecipeError`, by the variable's name, for a launch that asks for another training."""
    for name, advice in _ASKED_FOR.items():
        value = environment.get(name, "")
        if value.lower() not in _NEUTRAL:
            raise RecipeError(f"the launcher or the shell says {name}={value}, but {advice}")


def take_out(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Remove variables that the recipe decides from `environment`; return those that mattered."""
    taken = {name: environment.pop(name) for name in list(environment) if _decides(name)}
    return {name: value for name, value in sorted(taken.items()) if _matters(name, value)}


def for_own_launch(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of a launcher that this project starts, and the variables left out.

    All that steers a launcher is left out, DeepSpeed and the choice of devices by Accelerate
    included: options say it.
    """
    clean = dict(environment)
    ignored = take_out(clean)
    for name in list(clean):
        if name.startswith(("ACCELERATE_", *_LAUNCHER)) and name not in _HARMLESS:
            ignored[name] = clean.pop(name)
    return clean, dict(sorted(ignored.items()))


_HARMLESS = {"ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH"}


def listed(variables: Mapping[str, str]) -> str:
    """Return `variables` as a shell would set them, on one line."""
    return " ".join(f"{name}={value}" for name, value in variables.items())


def kept(name: str) -> bool:
    """Tell whether a variable of torch's or Accelerate's families is known to decide nothing."""
    return name in _KEPT or name.startswith(_KEPT_PREFIXES)


def _decides(name: str) -> bool:
    if kept(name):
        return False
    return name in _NAMES or name.startswith(_FAMILIES)


def _matters(name: str, value: str) -> bool:
    if name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" and value == "1":
        return False
    # `accelerate launch` itself sets these, to nothing.
    return not (name.startswith("ACCELERATE_") and value.lower() in _NEUTRAL)
