"""The environment of the shell that starts a training, made harmless: the recipe decides.

Accelerate and torch read many variables before, or in place of, what a program tells them. Other
launchers, containers and `accelerate config` leave such variables behind. Here each is taken out
and reported, or the launch is refused by the variable's name. No torch here: this comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from recipes.config.settings import RecipeError

# What launchers and libraries read, by prefix; `KEPT` has the exceptions.
_PREFIXES = (
    "ACCELERATE_",
    "FSDP_",
    "MEGATRON_LM_",
    "PARALLELISM_CONFIG_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_COMPILE_",
    "TORCH_DYNAMO_",
    "ONEDNN_",
    "DNNL_",
    "XLA_",
    "PJRT_",
    "CUBLAS_EMULAT",
    "PYTORCH_TUNABLEOP_",
)
# Single variables that change what is computed, or whose weights are trusted.
_NAMES = frozenset(
    {
        "ATEN_CPU_CAPABILITY",
        "DISABLE_ADDMM_CUDA_LT",
        "FORK_LAUNCHED",
        "KMP_DETERMINISTIC_REDUCTION",
        "MKL_CBWR",
        "MKL_DEBUG_CPU_TYPE",
        "MKL_DYNAMIC",
        "MKL_ENABLE_INSTRUCTIONS",
        "MKL_NUM_THREADS",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_DYNAMIC",
        "OMP_SCHEDULE",
        "OPENBLAS_CORETYPE",
        "PYTORCH_JIT",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "TORCH_BLAS_PREFER_CUBLASLT",
        "TORCH_BLAS_PREFER_HIPBLASLT",
        "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
        "TORCH_CUDNN_V8_API_DEBUG",
        "TORCH_CUDNN_V8_API_DISABLED",
        "TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "TORCH_LINEAR_FLATTEN_3D",
        "TRITON_F32_DEFAULT",
        "TRITON_INTERPRET",
        "USE_TORCH_XLA",
    }
)
# What a launch is made of, where logs and caches go: none of it decides a number. DeepSpeed's
# settings, which might, are compared with the recipe once DeepSpeed has read them.
_KEPT_PREFIXES = ("ACCELERATE_DEEPSPEED_", "TORCHINDUCTOR_CACHE", "TORCH_COMPILE_DEBUG")
_KEPT = frozenset(
    {
        "ACCELERATE_CONFIG_DS_FIELDS",
        "ACCELERATE_CPU_AFFINITY",
        "ACCELERATE_DEBUG_MODE",
        "ACCELERATE_ENABLE_RICH",
        "ACCELERATE_LOG_LEVEL",
        "ACCELERATE_USE_CPU",
        "ACCELERATE_USE_DEEPSPEED",
        "ONEDNN_VERBOSE",
        "DNNL_VERBOSE",
        "TORCHDYNAMO_VERBOSE",
        "TORCHINDUCTOR_COMPILE_THREADS",
    }
)
# Asking for these is no slip: each is refused, with the setting that does what was wanted.
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
# A value that asks for nothing.
_NEUTRAL = frozenset({"", "0", "no", "false", "none", "default"})
# How torch's launchers are told what to start: read in place of options that are not given.
_LAUNCHER = ("PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")


def refuse_unsupported(environment: Mapping[str, str]) -> None:
    """Raise `RecipeError`, by the variable's name, for a launch that asks for another training."""
    for name, advice in _ASKED_FOR.items():
        value = environment.get(name, "")
        if value.lower() not in _NEUTRAL:
            raise RecipeError(f"the launcher or the shell says {name}={value}, but {advice}")


def take_out(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Remove what the recipe decides from `environment`; return what was removed and mattered."""
    taken = {name: environment.pop(name) for name in list(environment) if _decides(name)}
    return {name: value for name, value in sorted(taken.items()) if _matters(name, value)}


def for_own_launch(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of a launcher that this project starts, and what was left out.

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


def _decides(name: str) -> bool:
    if name in _KEPT or name.startswith(_KEPT_PREFIXES):
        return False
    return name in _NAMES or name.startswith(_PREFIXES)


def _matters(name: str, value: str) -> bool:
    if name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" and value == "1":
        return False
    # `accelerate launch` itself sets these, to nothing.
    return not (name.startswith("ACCELERATE_") and value.lower() in _NEUTRAL)
