"""Builds the jobs of a plan from a recipe and a profile."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from orchestration.errors import OrchestrationError
from orchestration.plan import PART, Job, Stamp
from orchestration.profile import Profile
from recipes.config.schema import Recipe, Run
from recipes.config.stage import Stage
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
    slugs = run_slugs([run.id for run in runs])
    jobs += [_train_job(run, profile, path, overrides, made, slugs) for run in runs]
    for stage in published_stages(recipe):
        own = [run for run in runs if run.stage == stage]
        jobs += _after_training(recipe, profile, stage, own, slugs)
    return tuple(jobs)


def run_slugs(ids: Sequence[str]) -> dict[str, str]:
    """Return, for each run's id ("mse/w0.3"), what the names of its jobs end in ("mse-w0.3").

    No two are the same: a stage that is called `mse-w0.3` itself, beside that run, becomes
    `mse-w0.3.2`.
    """
    slugs: dict[str, str] = {}
    # A run with a rate keeps the expected name; the other one gets a number.
    for identity in sorted(ids, key=lambda one: "/" not in one):
        slug = first = identity.replace("/", "-")
        number = 2
        while slug in slugs.values() or (slug != first and slug in ids):
            slug, number = f"{first}.{number}", number + 1
        slugs[identity] = slug
    return slugs


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
    stamp = _stamp(recipe, profile, SHARD, words, pictures.source, [manifest])
    whole = Job(
        name=SHARD,
        kind="shard",
        words=tuple(words),
        resources=profile.resources_of("shard"),
        inputs=tuple(pictures.source),
        outputs=(manifest,),
        # A remote store is not looked at from here: `pipeline shard` itself finds its shards done.
        done="false" if "://" in manifest else stamp.shell("check"),
        stamp=None if "://" in manifest else stamp,
    )
    if pictures.parts == 1:
        yield whole
        return
    part = ("--part", f"{PART}/{pictures.parts}")
    array = {"words": (*words, *part), "parts": pictures.parts, "outputs": (out,)}
    yield whole.model_copy(update=array)
    yield whole.model_copy(update={"name": FINISH, "needs": (SHARD,)})


def _stamp(
    recipe: Recipe,
    profile: Profile,
    name: str,
    words: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> Stamp:
    return Stamp(
        file=f"{recipe.out}/stamps/{name}.json",
        command=shlex.join(words),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        container=tuple(getattr(profile, "container", ())),
    )


def _train_job(
    run: Run,
    profile: Profile,
    path: str,
    overrides: Sequence[str],
    made: str | None,
    slugs: Mapping[str, str],
) -> Job:
    resources = profile.resources_of(f"train.{run.stage.name}")
    script = [*_training_words(profile), path, "--stage", run.stage.name]
    if isinstance(run.stage.rate_weight, list):
        script += ["--rate-weight", f"{run.rate_weight:g}"]
    # The number of ranks is passed on, so that the script refuses a launch with another one.
    script += [*overrides, f"processes={resources.ranks}"]
    folder = run.folder.as_posix()
    before = f"train-{slugs[run.parent.id]}" if run.parent else made
    return Job(
        name=f"train-{slugs[run.id]}",
        kind="train",
        words=(*launch_words(resources, profile.launch), *script),
        resources=resources,
        needs=(before,) if before else (),
        inputs=(_model(run.parent),) if run.parent else tuple(run.data.corpora),
        outputs=(_model(run),),
        done=f"grep -qs '\"done\": *true' {shlex.quote(f'{folder}/run.json')}",
        run_folder=folder,
        steps=run.stage.steps,
    )


def _training_words(profile: Profile) -> list[str]:
    """Return the words for the training program: a checkout's script, else the installed module."""
    # Files inside pods can't be seen from here.
    if not profile.shares_files or Path(profile.workdir or ".", TRAIN_SCRIPT).exists():
        return [TRAIN_SCRIPT]
    return ["-m", TRAIN_MODULE]


def _after_training(
    recipe: Recipe, profile: Profile, stage: Stage, runs: Sequence[Run], slugs: Mapping[str, str]
) -> Iterator[Job]:
    """Yield the evaluation of a stage's models together, their registration, and promotion."""
    data = profile.evaluation.data or recipe.data.test or recipe.data.validation
    needs = tuple(f"train-{slugs[run.id]}" for run in runs)
    results: list[str] = []
    if data is not None:
        evaluation = _evaluate_job(recipe, profile, stage, runs, needs, data)
        needs, results = (evaluation.name,), [*evaluation.outputs]
        yield evaluation
    if not profile.registry.enabled:
        return
    name = _registered_name(recipe, profile, stage)
    registered: list[Job] = []
    for run in runs:
        own = f"register-{slugs[run.id]}"
        registered.append(_register_job(recipe, profile, run, own, name, needs, results))
        # One after another: they move the same alias.
        needs = (own,)
    yield from registered
    if profile.registry.promote:
        yield _promote_job(recipe, profile, stage, name, registered, data)


def _evaluate_job(
    recipe: Recipe,
    profile: Profile,
    stage: Stage,
    runs: Sequence[Run],
    needs: tuple[str, ...],
    data: str,
) -> Job:
    report = PurePosixPath(recipe.out, "reports", stage.name).as_posix()
    name = f"evaluate-{stage.name}"
    folders = [run.folder.as_posix() for run in runs]
    words = ["pipeline", "evaluate", *folders, "--data", data, "--out", report]
    words += profile.evaluation.options
    inputs = (*(_model(run) for run in runs), data)
    outputs = (f"{report}/results.json",)
    stamp = _stamp(recipe, profile, name, words, inputs, outputs)
    return Job(
        name=name,
        kind="evaluate",
        words=tuple(words),
        resources=profile.resources_of("evaluate"),
        needs=needs,
        inputs=inputs,
        outputs=outputs,
        done=stamp.shell("check"),
        stamp=stamp,
    )


def _register_job(
    recipe: Recipe,
    profile: Profile,
    run: Run,
    name: str,
    registered: str,
    needs: tuple[str, ...],
    results: Sequence[str],
) -> Job:
    """Return the job called `name` that makes a version of the model `registered`."""
    words = ["pipeline", "register", run.folder.as_posix(), "--name", registered]
    words += [word for path in results for word in ("--metrics", path)]
    words += ["--alias", "challenger", "--json"]
    return _registry_job(recipe, profile, "register", name, words, needs, [_model(run), *results])


def _promote_job(
    recipe: Recipe,
    profile: Profile,
    stage: Stage,
    registered: str,
    versions: Sequence[Job],
    data: str | None,
) -> Job:
    if data is None:
        raise OrchestrationError(
            "promotion measures champion and challenger on pictures, and neither the recipe"
            " (data.test, data.validation) nor the profile (evaluation.data) names any: name a"
            " folder, or set registry.promote to false in the profile"
        )
    words = ["pipeline", "promote", registered, "--data", data, "--json"]
    inputs = [*(job.receipt or "" for job in versions), data]
    needs = tuple(job.name for job in versions)
    return _registry_job(recipe, profile, "promote", f"promote-{stage.name}", words, needs, inputs)


def _registry_job(
    recipe: Recipe,
    profile: Profile,
    kind: Literal["register", "promote"],
    name: str,
    words: Sequence[str],
    needs: tuple[str, ...],
    inputs: Sequence[str],
) -> Job:
    """Return a job that writes to the registry, with a receipt of what the registry answered."""
    receipt = f"{recipe.out}/registered/{name}.json"
    stamp = _stamp(recipe, profile, name, words, inputs, [receipt])
    return Job(
        name=name,
        kind=kind,
        words=tuple(words),
        resources=profile.resources_of(kind),
        needs=needs,
        inputs=tuple(inputs),
        outputs=(receipt,),
        done=stamp.shell("check"),
        stamp=stamp,
        receipt=receipt,
    )


def _registered_name(recipe: Recipe, profile: Profile, stage: Stage) -> str:
    """Return the name in the registry: models of different stages don't compete for one alias."""
    name = profile.registry.name or recipe.name
    return name if len(published_stages(recipe)) == 1 else f"{name}-{stage.name}"


def _model(run: Run) -> str:
    return (run.folder / "model.safetensors").as_posix()
