"""From a recipe and a profile to the jobs of a plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from orchestration.errors import OrchestrationError
from orchestration.plan import PART, Job, exists, newer
from orchestration.profile import Profile
from recipes.config.schema import Recipe, Run, Stage
from recipes.launching.command import launch_words

SHARD, FINISH = "shard", "shard-finish"
TRAIN_SCRIPT, TRAIN_MODULE = "recipes/train.py", "recipes.train"


def build_jobs(
    recipe: Recipe, profile: Profile, path: str, overrides: Sequence[str] = ()
) -> tuple[Job, ...]:
    """Return the jobs of `recipe`, whose file the jobs find at `path`, as `profile` runs them.

    What a job needs comes before it. Raises `OrchestrationError` when models are to be measured
    or promoted and no pictures are named for that, or the profile has pictures to shard and the
    recipe several corpora.
    """
    jobs = [*_shard_jobs(recipe, profile)]
    made = jobs[-1].name if jobs else None
    runs = recipe.runs()
    jobs += [_train_job(run, profile, path, overrides, made) for run in runs]
    for stage in published_stages(recipe):
        jobs += _after_training(recipe, profile, stage, [run for run in runs if run.stage == stage])
    return tuple(jobs)


def published_stages(recipe: Recipe) -> list[Stage]:
    """Return the stages whose models are measured and registered.

    Those are the ones that no other stage starts from, and those with a model for each rate; a
    stage with one model that others start from is a step on the way.
    """
    origins = {stage.init for stage in recipe.stages}
    return [
        stage
        for stage in recipe.stages
        if stage.name not in origins or isinstance(stage.rate_weight, list)
    ]


def _shard_jobs(recipe: Recipe, profile: Profile) -> Iterator[Job]:
    pictures = profile.pictures
    if not pictures.source:
        return
    out, *others = recipe.data.corpora
    if others:
        raise OrchestrationError(
            f"the profile's pictures make one corpus, and the recipe trains on {1 + len(others)}: "
            "leave out `pictures`, and shard each corpus first"
        )
    words = ["pipeline", "shard", *pictures.source, "--out", out]
    words += ["--split", recipe.data.split, *pictures.options]
    manifest = f"{out.rstrip('/')}/{recipe.data.split}.json"
    whole = Job(
        name=SHARD,
        kind="shard",
        words=tuple(words),
        resources=profile.resources_of("shard"),
        inputs=tuple(pictures.source),
        outputs=(manifest,),
        done=_manifest_test(manifest),
    )
    if pictures.parts == 1:
        yield whole
        return
    part = ("--part", f"{PART}/{pictures.parts}")
    array = {"words": (*words, *part), "parts": pictures.parts, "outputs": (out,)}
    yield whole.model_copy(update=array)
    yield whole.model_copy(update={"name": FINISH, "needs": (SHARD,)})


def _manifest_test(manifest: str) -> str:
    # A remote store can't be looked at by `test`; there, `pipeline shard` itself finds all done.
    return "false" if "://" in manifest else exists(manifest)


def _train_job(
    run: Run, profile: Profile, path: str, overrides: Sequence[str], made: str | None
) -> Job:
    resources = profile.resources_of(f"train.{run.stage.name}")
    script = [*_training_words(profile), path, "--stage", run.stage.name]
    if isinstance(run.stage.rate_weight, list):
        script += ["--rate-weight", f"{run.rate_weight:g}"]
    # The number of ranks goes along so that the script refuses a launch that came out otherwise.
    script += [*overrides, f"processes={resources.ranks}"]
    folder = run.folder.as_posix()
    before = _train_name(run.parent) if run.parent else made
    return Job(
        name=_train_name(run),
        kind="train",
        words=(*launch_words(resources, profile.launch), *script),
        resources=resources,
        needs=(before,) if before else (),
        inputs=(_model(run.parent),) if run.parent else tuple(run.recipe.data.corpora),
        outputs=(_model(run),),
        done=f"grep -qs '\"done\": *true' {shlex.quote(f'{folder}/run.json')}",
        run_folder=folder,
        steps=run.stage.steps,
    )


def _training_words(profile: Profile) -> list[str]:
    """Return what is launched: a checkout's own script, or the installed module without one."""
    # What is in pods can't be seen from here.
    if not profile.shares_files or Path(profile.workdir or ".", TRAIN_SCRIPT).exists():
        return [TRAIN_SCRIPT]
    return ["-m", TRAIN_MODULE]


def _after_training(
    recipe: Recipe, profile: Profile, stage: Stage, runs: Sequence[Run]
) -> Iterator[Job]:
    """Yield the evaluation of a stage's models together, their registration, and promotion."""
    data = profile.evaluation.data or recipe.data.validation
    report = PurePosixPath(recipe.out, "reports", stage.name).as_posix()
    trained = tuple(_train_name(run) for run in runs)
    needs = trained
    if data is not None:
        evaluation = _evaluate_job(profile, stage, runs, data, report)
        needs = (evaluation.name,)
        yield evaluation
    if not profile.registry.enabled:
        return
    name = _registered_name(recipe, profile, stage)
    registered: list[Job] = []
    for run in runs:
        registered.append(_register_job(recipe, profile, run, name, needs, report, data))
        # One after another: they move the same alias.
        needs = (registered[-1].name,)
    yield from registered
    if profile.registry.promote:
        yield _promote_job(recipe, profile, stage, name, registered, data)


def _evaluate_job(
    profile: Profile, stage: Stage, runs: Sequence[Run], data: str, report: str
) -> Job:
    models = tuple(_model(run) for run in runs)
    folders = [run.folder.as_posix() for run in runs]
    words = ["pipeline", "evaluate", *folders, "--data", data, "--out", report]
    return Job(
        name=f"evaluate-{stage.name}",
        kind="evaluate",
        words=(*words, *profile.evaluation.options),
        resources=profile.resources_of("evaluate"),
        needs=tuple(_train_name(run) for run in runs),
        inputs=(*models, data),
        outputs=(f"{report}/results.json",),
        done=newer(f"{report}/results.json", models),
    )


def _register_job(
    recipe: Recipe,
    profile: Profile,
    run: Run,
    name: str,
    needs: tuple[str, ...],
    report: str,
    data: str | None,
) -> Job:
    receipt = f"{recipe.out}/registered/{_slug(run)}.json"
    inputs = (_model(run),) if data is None else (_model(run), f"{report}/results.json")
    words = ["pipeline", "register", run.folder.as_posix(), "--name", name]
    words += ["--metrics", f"{report}/results.json"] if data is not None else []
    return Job(
        name=f"register-{_slug(run)}",
        kind="register",
        words=(*words, "--alias", "challenger", "--json"),
        resources=profile.resources_of("register"),
        needs=needs,
        inputs=inputs,
        outputs=(receipt,),
        done=newer(receipt, inputs),
        receipt=receipt,
    )


def _promote_job(
    recipe: Recipe,
    profile: Profile,
    stage: Stage,
    name: str,
    registered: Sequence[Job],
    data: str | None,
) -> Job:
    if data is None:
        raise OrchestrationError(
            "promotion measures champion and challenger on pictures, and neither the recipe"
            " (data.validation) nor the profile (evaluation.data) names any: name a folder, or set"
            " registry.promote to false in the profile"
        )
    receipt = f"{recipe.out}/registered/promoted-{stage.name}.json"
    inputs = tuple(job.receipt or "" for job in registered)
    return Job(
        name=f"promote-{stage.name}",
        kind="promote",
        words=("pipeline", "promote", name, "--data", data, "--json"),
        resources=profile.resources_of("promote"),
        needs=tuple(job.name for job in registered),
        inputs=(*inputs, data),
        outputs=(receipt,),
        done=newer(receipt, inputs),
        receipt=receipt,
    )


def _registered_name(recipe: Recipe, profile: Profile, stage: Stage) -> str:
    """Return the name in the registry: models of different stages don't compete for one alias."""
    name = profile.registry.name or recipe.name
    return name if len(published_stages(recipe)) == 1 else f"{name}-{stage.name}"


def _train_name(run: Run) -> str:
    return f"train-{_slug(run)}"


def _slug(run: Run) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", run.id)


def _model(run: Run) -> str:
    return (run.folder / "model.safetensors").as_posix()
