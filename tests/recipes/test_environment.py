"""What the shell of a launch leaves behind trains no other model: the recipe decides."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.numpy import load_file

from pipeline.common.machine import usable_cores
from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.launching.environment import for_own_launch, kept, refuse_unsupported, take_out
from recipes.launching.local import local_options
from recipes.launching.ranks import claims, refuse_left_over, settle
from recipes.train import main

# Refused by name: they ask for another kind of training.
REFUSED = {
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_USE_SAGEMAKER": "true",
}
# Taken out of the environment: they would change what is computed, or do nothing here.
IGNORED = {
    "ACCELERATE_ALLOW_CP_STANDALONE": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_FP8_FORMAT": "E4M3",
    "ACCELERATE_FP8_OPT_LEVEL": "O1",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_GRADIENT_CLIPPING": "1e-9",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "true",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "DATA_PARALLEL",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ATEN_CPU_CAPABILITY": "default",
    "DISABLE_ADDMM_CUDA_LT": "1",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "FORK_LAUNCHED": "1",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_OFFLOAD_PARAMS": "true",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_VERSION": "2",
    "KMP_DETERMINISTIC_REDUCTION": "false",
    "KMP_DEVICE_THREAD_LIMIT": "1",
    "KMP_FORCE_REDUCTION": "atomic",
    "MEGATRON_LM_TP_DEGREE": "2",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "MKL_NUM_STRIPES": "2",
    "MKL_NUM_THREADS": "7",
    "NVIDIA_TF32_OVERRIDE": "1",
    "OMP_DYNAMIC": "true",
    "OMP_MAX_ACTIVE_LEVELS": "3",
    "OMP_SCHEDULE": "dynamic,1",
    "OMP_THREAD_LIMIT": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PARALLELISM_CONFIG_CP_SIZE": "2",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "PJRT_DEVICE": "TPU",
    "PYTORCH_JIT": "0",
    "PYTORCH_TENSOREXPR": "1",
    "PYTORCH_TUNABLEOP_ENABLED": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHINDUCTOR_FREEZING": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "TORCH_COMPILE_BACKEND": "aot_eager",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCH_CUDNN_V8_API_DISABLED": "1",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    "TORCH_LINALG_PREFER_CUSOLVER": "1",
    "TORCH_LINEAR_FLATTEN_3D": "1",
    "TORCH_MKLDNN_MATMUL_MIN_DIM": "1",
    "TORCH_OF_A_LATER_VERSION": "1",
    "XLA_USE_BF16": "1",
}
# Left as they are: they change no number.
HARMLESS = {
    "ACCELERATE_CPU_AFFINITY": "0",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_LOG_LEVEL": "debug",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "CUDA_LAUNCH_BLOCKING": "1",
    "CUDA_MODULE_LOADING": "EAGER",
    "CUDA_VISIBLE_DEVICES": "",
    "FI_PROVIDER": "tcp",
    "GLOO_SOCKET_IFNAME": "lo",
    "KMP_AFFINITY": "granularity=fine,compact,1,0",
    "KMP_BLOCKTIME": "1",
    "NCCL_ALGO": "Tree",
    "NCCL_DEBUG": "WARN",
    "NCCL_IB_DISABLE": "1",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_PROTO": "Simple",
    "OMP_PROC_BIND": "false",
    "GOMP_CPU_AFFINITY": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "7",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_BLOCKING_WAIT": "1",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
    # Of one process, which is what this is.
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "OMPI_COMM_WORLD_SIZE": "1",
    "PMI_RANK": "0",
    "PMI_SIZE": "1",
    "RANK": "0",
    "WORLD_SIZE": "1",
}
STEPS = ["stages.0.steps=3"]


def digest(folder: Path) -> str:
    weights = load_file(folder / "base" / "model.safetensors")
    told = hashlib.sha256()
    for name in sorted(weights):
        told.update(name.encode() + weights[name].tobytes())
    return told.hexdigest()


# The interpreter compiles every module anew for this, which takes a minute where it is the first.
ANEW = pytest.param({"PYTHONOPTIMIZE": "2"}, marks=pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, ANEW])
def test_no_variable_of_the_shell_trains_another_model(
    write_recipe, root: Path, more: dict[str, str]
) -> None:
    assert len(REFUSED) + len(IGNORED) + len(HARMLESS) >= 60
    path = write_recipe()
    assert main([str(path), *STEPS, "out=clean"]) == 0
    # Threads decide in which order sums are added.
    threads = str(usable_cores() + 1)
    done = subprocess.run(
        [sys.executable, str(root / "recipes" / "train.py"), str(path), *STEPS, "out=dirty"],
        env={**os.environ, "OMP_NUM_THREADS": threads, **IGNORED, **HARMLESS, **more},
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert digest(path.parent / "clean") == digest(path.parent / "dirty")
    for name, value in {**IGNORED, "OMP_NUM_THREADS": threads}.items():
        assert f"{name}={value}" in done.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_another_training_is_refused_by_name(
    write_recipe, name: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv(name, REFUSED[name])
    assert main([str(write_recipe())]) == 2
    assert f"{name}={REFUSED[name]}" in caplog.text
    assert not Path("runs").exists()


READS = re.compile(
    r"(?:environ(?:\.get|\.pop|\.setdefault)?\s*[\[(]|getenv\(|_from_env\(\[?|env_name_\w+=\[?)"
    r"\s*[\"']([A-Z][A-Z0-9_]+)"
)


def variables_read(package: ModuleType) -> set[str]:
    """Return the environment variables that a package's Python sources read."""
    read = set()
    for file in Path(str(package.__file__)).parent.rglob("*.py"):
        if not {"test_utils", "testing"} & set(file.parts):
            read |= set(READS.findall(file.read_text(errors="replace")))
    return read


def test_every_variable_that_accelerate_reads_is_known() -> None:
    """A newer Accelerate that reads another variable must be looked at."""
    import accelerate

    read = variables_read(accelerate)
    assert len(read) > 60
    left = dict.fromkeys(read, "1")
    take_out(left)
    ranks = {name for claim in claims(left) for name in claim.names}
    launched, _ = for_own_launch(left)
    steering = [name for name in launched if name.startswith(("ACCELERATE_", "FSDP_", "MEGATRON"))]
    assert set(steering) <= {
        "ACCELERATE_DEBUG_MODE",
        "ACCELERATE_ENABLE_RICH",
        "ACCELERATE_LOG_LEVEL",
    }
    settings = {name for name in left if name.startswith("ACCELERATE_DEEPSPEED_")}
    # Logs, trackers, machines and caches: none decides a number.
    known = {
        *("ACCELERATE_CONFIG_DS_FIELDS", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE"),
        *("ACCELERATE_ENABLE_RICH", "ACCELERATE_LOG_LEVEL", "ACCELERATE_USE_CPU"),
        *("ACCELERATE_USE_DEEPSPEED", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
        *("AWS_SECRET_ACCESS_KEY", "CLEARML_PROJECT", "CLEARML_TASK", "DEEPSPEED_USE_HPU"),
        *("HF_HOME", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_NESTED_RUN", "MLFLOW_RUN_ID"),
        *("MLFLOW_TAGS", "NPROC", "OMP_NUM_THREADS", "PT_HPU_LAZY_MODE", "PYTEST_XDIST_WORKER"),
        *("PYTORCH_ENABLE_MPS_FALLBACK", "RUN_SLOW", "TPU_NAME", "XDG_CACHE_HOME"),
        *("TRANSFORMERS_NO_ADVISORY_WARNINGS", "MLFLOW_TRACKING_URI", "MLFLOW_FLATTEN_PARAMS"),
        *("ACCELERATE_BYPASS_DEVICE_MAP", "FOO"),  # the second stands in an example
    }
    assert left.keys() - ranks - settings <= known


# Where things are, how to compile and what to write beside: by the families of their names.
TORCHS_TOOLS = (
    *("BENCHMARK_", "COMPILE_STROBELIGHT_", "CONDA_", "CU", "DCP_", "DUMP_", "FR_", "VCT"),
    *("ENABLE_PYTORCH_EXECUTION_TRACE", "FX_GRAPH_", "HALIDE_", "HIP_", "KINETO_", "LD_", "LOG"),
    *("NVSHMEM_", "ONEAPI_", "PARTITIONER_", "PIP_", "QUACK_", "ROC", "TORCHELASTIC_", "TRITON_"),
    *("TVM_", "VIRTUAL_", "WINDOWS_", "XDG_", "ZE_", "MASTER_", "PT2_", "TORCHEXPORT_", "UNSAFE_"),
)


def test_every_variable_that_torch_reads_is_known() -> None:
    """A newer torch that reads a variable of another kind must be looked at."""
    import torch

    left = dict.fromkeys(variables_read(torch), "1")
    assert len(left) > 250
    take_out(left)
    decide = [name for name in left if name.startswith(("TORCH_CUDNN", "TORCH_MKLDNN", "AOT"))]
    assert not decide
    ranks = {name for claim in claims(left) for name in claim.names}
    known = {
        *("CC", "CI", "CXX", "CPLUS_INCLUDE_PATH", "DISABLE_CUPTI_LAZY_REINIT", "FAKE_ALLOW_META"),
        *("IS_FBCODE", "JAX_PLATFORMS", "KMP_DUPLICATE_LIB_OK", "LEVEL_ZERO_V1_SDK_PATH", "PATH"),
        *("LTC_MAX_ASYNC_QUEUE", "MAST_HPC_JOB_NAME", "MAX_JOBS", "NVTOOLSEXT_PATH"),
        *("PROGRAMFILES", "PYTHON_EXEC", "SYSTEMROOT", "TEARDOWN_CUPTI", "USER", "USERNAME"),
        *("USE_LIBUV", "BREAK", "ONNXRT_DUMP_PATH"),  # the last two in torch 2.8
    }
    found = {
        name
        for name in left.keys() - ranks - known
        if not name.startswith(TORCHS_TOOLS) and not kept(name)
    }
    assert not found


def test_the_users_default_file_is_not_read(
    tmp_path: Path, write_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml
    from accelerate.commands import launch
    from accelerate.commands.config import config_args

    file = tmp_path / "default_config.yaml"
    # Accelerate has both names, made when it was imported.
    for module in (config_args, launch):
        name = "default_config_file" if module is launch else "default_yaml_config_file"
        monkeypatch.setattr(module, name, str(file))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    recipe = load_recipe(write_recipe())
    for kind in ("DEEPSPEED", "FSDP", "MULTI_GPU"):
        content: dict[str, object] = {"compute_environment": "LOCAL_MACHINE"}
        content |= {"distributed_type": kind}
        content |= {"mixed_precision": "bf16", "num_machines": 2, "num_processes": 8}
        file.write_text(yaml.safe_dump({**content, "use_cpu": False, "debug": False}))
        options, _ = local_options(recipe, None)
        read = launch.launch_command_parser().parse_args([*options, "train.py"])
        read, *_ = launch._validate_launch_command(read)
        assert not any((read.use_deepspeed, read.use_fsdp, read.multi_gpu)), kind
        assert (read.mixed_precision, read.num_processes, read.num_machines) == ("no", 1, 1)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "4"},
        {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "10.1.2.3"},
        {"LOCAL_RANK": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        {"MV2_COMM_WORLD_SIZE": "8"},
    ],
)
def test_ranks_of_a_launcher_that_is_gone_are_refused_by_name(left: dict[str, str]) -> None:
    for refuse in (
        lambda: refuse_left_over(left, "unset them"),
        lambda: settle(dict(left), [["bash"], ["sshd"]]),
        lambda: settle(dict(left), [["python", "/bin/accelerate", "launch", "--num_processes=1"]]),
    ):
        with pytest.raises(RecipeError, match=" ".join(f"-u {name}" for name in sorted(left))[:8]):
            refuse()


def test_ranks_of_a_launcher_that_is_there_are_true() -> None:
    torchrun = [["python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]]
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "PMI_SIZE": "1", "PMI_RANK": "0"}
    assert settle(ranks, torchrun) is None
    assert set(ranks) == {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert settle(mpi, [["bash", "train.sh"], ["/usr/bin/mpirun", "-n", "2"]]) is None
    assert len(mpi) == 2
    slurm = {"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
    assert settle(slurm, [["slurmstepd: [7.0]"]]) is None
    # What a scheduler of pods sets has no launcher that can be seen: the others may come.
    pods = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456"}
    assert settle(pods, []) == 600


@pytest.mark.slow
def test_a_rank_that_waits_for_nobody_is_told_so(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr("recipes.launching.ranks.PATIENCE_HERE", 1)
    monkeypatch.setattr("recipes.launching.ranks.started_by", lambda parents: False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0x")
    assert main([str(write_recipe())]) == 2
    assert "env -u RANK -u WORLD_SIZE -u MASTER_ADDR" in caplog.text
    monkeypatch.setenv("MASTER_PORT", "29713")
    assert main([str(write_recipe())]) == 2
    assert "the others did not come to 127.0.0.1:29713 within 1 s" in caplog.text


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.train=runs #2", "data.train", "runs #2"),
        ("data.train=a#b", "data.train", "a#b"),
        ("data.train=#7", "data.train", "#7"),
        ("data.train=s3://lab/shards", "data.train", "s3://lab/shards"),
        ("stages.0.frozen=['g_a*']", "stages", None),
    ],
)
def test_an_override_is_what_was_typed(write_recipe, override: str, key: str, value) -> None:
    recipe = load_recipe(write_recipe(), [override])
    said = json.loads(recipe.model_dump_json())
    for part in key.split("."):
        said = said[part]
    assert said == value or (value is None and said[0]["frozen"] == ["g_a*"])


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("stages.0.frozen=[g_a] # all of it", "put quotes around what has a # in it"),
        ("out=s3://lab/runs", "out: must be a folder"),
        ("data.validation=gs://lab/kodak", "data.validation: must be a folder"),
        ("stages.0.lr=1,5e-4", "stages.0.lr"),
        ("name=007", "name"),
    ],
)
def test_an_override_that_would_be_another_thing_is_refused(
    write_recipe, override: str, piece: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(piece)):
        load_recipe(write_recipe(), [override])


def test_launchers_of_our_own_get_a_clean_environment() -> None:
    left = {"PATH": "/bin", "PET_NNODES": "2", "TORCHELASTIC_RUN_ID": "x", "NCCL_DEBUG": "INFO"}
    left |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    clean, ignored = for_own_launch(left)
    assert clean == {"PATH": "/bin", "NCCL_DEBUG": "INFO"}
    assert ignored.keys() == left.keys() - clean.keys()
    refuse_unsupported({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "False"})
