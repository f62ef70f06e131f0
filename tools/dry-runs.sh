#!/usr/bin/env bash
# Dry run of every configuration and of the cluster's profile: each must plan without a hub, a GPU or a cluster.
set -euo pipefail
snakemake=${1:-snakemake}
plan() {
    echo "dry run: $*"
    "$snakemake" --dry-run --quiet all "$@"
}
for config in config/config.yaml config/demo.yaml config/slake-cpu.yaml; do
    plan --profile profiles/local --configfile "$config"
done
plan --profile profiles/aire
