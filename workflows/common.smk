"""The workflow common to all studies: encoders x models x seeds, as `wsi` commands.

A study's Snakefile names its config, includes this file, and defines the rules `all` (RESULTS) and `manifest`. The
manifest is a file like any other, and no rule depends on the slides, so the whole graph can be built before anything is
downloaded (`snakemake -n`).

How runs reuse expensive results without interfering: an encoder's patches are embedded once, in OUT/<encoder>/bags.
Each (encoder, model, seed) has its own run folder, whose tile/ and embed/ are links into bags. The later stages (train,
predict, explain, evaluate, heatmap, view) only read these two folders and write to the others, so any number of runs
can execute in parallel, on one machine or on several with a common file system. A run folder is complete: any `wsi`
command can be called on it by hand, and `wsi summary` finds the seeds of one design in neighbouring folders.

Snakemake tracks a run by its last file only; within a run `wsi` itself determines what is current, so a job that was
interrupted continues. A slide that fails stops its rule (exit code 1), because the results would otherwise be over
fewer slides than stated. See failures.csv, then repair the slide or add it to manifest.leave_out.
"""

import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from wsi_pipeline.errors import WsiError
from wsi_pipeline.studies.study_plan import Study

try:
    STUDY = Study.of(config)
except WsiError as error:
    raise WorkflowError(str(error))

OUT = str(STUDY.config.out)
DATA = str(STUDY.config.data)
BAGS = OUT + "/{encoder}/bags"
RUN = OUT + "/{encoder}/{model}/seed{seed}"
WSI = f"{shlex.quote(sys.executable)} -m wsi_pipeline"


def runs(pattern, seeds=None):
    """The pattern filled in for every run, or for those with one of the seeds."""
    found = [run for run in STUDY.runs if seeds is None or run[2] in seeds]
    return [pattern.format(encoder=e, model=m, seed=s) for e, m, s in found]


def manifest_options():
    """The study's `manifest:` as options of `wsi manifest`; a list becomes one option per element."""
    options = []
    for name, value in STUDY.config.manifest.items():
        for item in value if isinstance(value, list) else [value]:
            options += ["--" + name.replace("_", "-"), str(item)]
    return " ".join(map(shlex.quote, options))


def threads_of(rule, default=1):
    return STUDY.config.threads.get(rule, default)


RESULTS = [OUT + "/summary.md", *runs(RUN + "/.viewed", STUDY.config.view_seeds)]


wildcard_constraints:
    encoder="|".join(STUDY.encoders),
    model="|".join(STUDY.models),
    seed=r"\d+",


localrules: bags_config, run_config, summary


rule bags_config:
    output:
        BAGS + ".yaml",
    params:
        text=lambda w: STUDY.bags_yaml(w.encoder),
    shell:
        "printf %s {params.text:q} > {output:q}"


rule run_config:
    output:
        RUN + ".yaml",
    params:
        text=lambda w: STUDY.run_yaml(w.encoder, w.model, int(w.seed)),
    shell:
        "printf %s {params.text:q} > {output:q}"


rule bags:
    input:
        OUT + "/slides.csv",
        config=BAGS + ".yaml",
    output:
        touch(BAGS + "/.embedded"),
    log:
        OUT + "/logs/{encoder}-bags.txt",
    threads: threads_of("bags", 4)
    shell:
        "({WSI} tile {input.config:q} --set engine.workers={threads}"
        " && {WSI} embed {input.config:q} --set engine.workers={threads}) > {log:q} 2>&1"


rule train:
    input:
        BAGS + "/.embedded",
        OUT + "/slides.csv",
        config=RUN + ".yaml",
    output:
        RUN + "/train/predictions.csv",
    log:
        OUT + "/logs/{encoder}-{model}-{seed}-train.txt",
    params:
        folder=RUN,
    threads: threads_of("train")
    shell:
        "(ln -sfn ../../bags/tile {params.folder:q}/tile && ln -sfn ../../bags/embed {params.folder:q}/embed"
        " && {WSI} train {input.config:q} --set engine.workers={threads}) > {log:q} 2>&1"


rule predict:
    input:
        RUN + "/train/predictions.csv",
        config=RUN + ".yaml",
    output:
        RUN + "/predict/predictions.csv",
    log:
        OUT + "/logs/{encoder}-{model}-{seed}-predict.txt",
    threads: threads_of("predict")
    shell:
        "{WSI} predict {input.config:q} --set engine.workers={threads} > {log:q} 2>&1"


rule explain:
    input:
        RUN + "/predict/predictions.csv",
        config=RUN + ".yaml",
    output:
        touch(RUN + "/.explained"),
    log:
        OUT + "/logs/{encoder}-{model}-{seed}-explain.txt",
    threads: threads_of("explain")
    shell:
        "{WSI} explain {input.config:q} --set engine.workers={threads} > {log:q} 2>&1"


rule evaluate:
    input:
        RUN + "/predict/predictions.csv",
        lambda w: RUN + "/.explained" if int(w.seed) in STUDY.config.explain_seeds else [],
        config=RUN + ".yaml",
    output:
        RUN + "/evaluate/report.json",
        RUN + "/evaluate/metrics.csv",
        RUN + "/evaluate/metrics_patients.csv",
        RUN + "/evaluate/maps.csv",
    log:
        OUT + "/logs/{encoder}-{model}-{seed}-evaluate.txt",
    shell:
        "{WSI} evaluate {input.config:q} > {log:q} 2>&1"


rule view:
    input:
        RUN + "/.explained",
        RUN + "/evaluate/report.json",
        config=RUN + ".yaml",
    output:
        touch(RUN + "/.viewed"),
    log:
        OUT + "/logs/{encoder}-{model}-{seed}-view.txt",
    threads: threads_of("view")
    shell:
        "({WSI} heatmap {input.config:q} --set engine.workers={threads}"
        " && {WSI} view {input.config:q} --set engine.workers={threads}) > {log:q} 2>&1"


rule summary:
    input:
        runs(RUN + "/evaluate/metrics.csv"),
    output:
        OUT + "/summary.csv",
        OUT + "/summary.md",
    params:
        runs=runs(RUN),
        out=OUT,
    shell:
        "{WSI} summary {params.runs:q} --out {params.out:q}"
