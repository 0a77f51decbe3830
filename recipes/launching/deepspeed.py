"""Checks DeepSpeed's settings: they may choose places, buckets and logs, but change no number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.settings import RecipeError

# Settings that change no number, or are checked or set elsewhere. All others must be off.
_HARMLESS = frozenset(
    {
        "aio",
        "comet",
        "comms_logger",
        "csv_monitor",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "memory_breakdown",
        "monitor_config",
        "nebula",
        "steps_per_print",
        "tensorboard",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)
# Settings of `zero_optimization`: what is shared out, where it lies, and how it is sent.
_ZERO = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "ignore_unused_parameters",
        "max_live_parameters",
        "max_reuse_distance",
        "model_persistence_threshold",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "param_persistence_threshold",
        "prefetch_bucket_size",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "stage",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
    }
)
# Values besides "off" that are the settings' defaults.
_PLAIN: dict[str, tuple[object, ...]] = {
    "communication_data_type": ("fp32",),
    "gradient_predivide_factor": (1, 1.0),
    "sequence_parallel_size": (1,),
}
_OFF = (None, False, 0, "", "auto", "none")


def refuse_other_training(config: Mapping[str, Any], accumulate: int) -> None:
    """Raise `RecipeError`, with their names, for settings that would change what is trained.

    `config` is DeepSpeed's, `accumulate` the recipe's parts of a batch.
    """
    wrong = list(_deciding(config, accumulate))
    if wrong:
        raise RecipeError(
            f"DeepSpeed's settings have {', '.join(wrong)}, which the recipe decides: use"
            " recipes/accelerate/zero1.yaml, zero2.yaml or zero3.yaml, or leave them out"
        )


def _deciding(config: Mapping[str, Any], accumulate: int) -> Iterator[str]:
    plain = _PLAIN | {"gradient_accumulation_steps": (accumulate,)}
    for key, value in config.items():
        if key == "zero_optimization" and isinstance(value, Mapping):
            for name, inner in value.items():
                if name not in _ZERO and not _off(inner):
                    yield f"{key}.{name}"
        elif key not in _HARMLESS and not _off(value) and value not in plain.get(key, ()):
            yield key


def _off(value: object) -> bool:
    """Tell whether a setting is off."""
    if isinstance(value, Mapping):
        return value.get("enabled") is False or all(_off(inner) for inner in value.values())
    return (value in _OFF) if not isinstance(value, list) else not value
