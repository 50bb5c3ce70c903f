#!/usr/bin/env bash
# Hand all stages of a pipeline to Slurm, each when the one before it has ended well:
#
#   pipelines/slurm/submit.sh pipeline.toml [TASKS]
#
# TASKS      array tasks of tile and heatmap, and of embed unless EMBED_TASKS says another number (default 4)
# OPTIONS    sbatch options of every job, such as "--partition=main --account=mine --time=4:00:00 --mem=16G"
# TILE_OPTIONS, EMBED_OPTIONS, TRAIN_OPTIONS, HEATMAP_OPTIONS   those of one stage besides, such as
#            "--gres=gpu:1 --cpus-per-task=8"
# MAX_FAILED part of the slides that may fail without ending the chain (0: one bad slide ends it)
# WSI_MIL    the command, where it is not "wsi-mil"
#
# The working directory and the environment are those of this shell; logs go to ./STAGE-JOB_TASK.log. Given again,
# it goes on: what is done is skipped. It prints the number of each job.
set -euo pipefail

config=${1:?which pipeline? submit.sh CONFIG.toml [TASKS]}
tasks=${2:-4}
here=$(cd "$(dirname "$0")" && pwd)
[[ -f $config ]] || { echo "submit.sh: $config: no such file" >&2; exit 2; }
[[ $tasks =~ ^[1-9][0-9]*$ && ${EMBED_TASKS:-$tasks} =~ ^[1-9][0-9]*$ ]] || { echo "submit.sh: TASKS must be a number from 1" >&2; exit 2; }

before=
submit() { # STAGE, sbatch options...
  local stage=$1
  shift
  # afterok: a stage starts when all tasks of the one before ended with 0, and is cancelled when it never can.
  before=$(sbatch --parsable --job-name="$stage" --kill-on-invalid-dep=yes ${before:+--dependency="afterok:$before"} \
    ${OPTIONS:-} "$@" "$here/stage.sbatch" "$stage" --config "$config" --max-failed "${MAX_FAILED:-0}")
  echo "$stage $before"
}

submit tile --array="1-$tasks" ${TILE_OPTIONS:-}
submit embed --array="1-${EMBED_TASKS:-$tasks}" ${EMBED_OPTIONS:-}
submit train ${TRAIN_OPTIONS:-}
submit heatmap --array="1-$tasks" ${HEATMAP_OPTIONS:-}
submit report
